"""Several videos from one job: each is what its own job makes, each stands before the next, and nothing is made twice."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.assets.tiny_wan import tiny_model
from tests.supervisor.conftest import PROGRAMS
from wan_compat import GenerationRequest, Supervisor
from wan_compat.policies.requests import resolve_request
from wan_compat.protocol import errors
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.cli.again import Again
from wan_compat.supervisor.cli.options import Mode
from wan_compat.supervisor.model_choice import choose_model
from wan_compat.supervisor.plan_report import plan_model
from wan_compat.supervisor.video_info import request_again


@pytest.fixture(scope="module")
def pretended() -> Iterator[Supervisor]:
    """A supervisor whose workers do as the prompt says: "exit@7" misbehaves where the seed is 7."""
    with Supervisor() as supervisor:
        supervisor._zygote_program = (str(PROGRAMS / "misbehaving_zygote.py"), "as-asked")
        yield supervisor


@pytest.fixture
def asked(request_for: Callable[..., GenerationRequest], tmp_path: Path) -> Callable[..., GenerationRequest]:
    """Return a function that asks for three arrays, which need no encoder."""

    def make(behaviour: str, **fields: Any) -> GenerationRequest:
        fields = {"output": str(tmp_path / "fox.npy"), "num_videos": 3, "seed": 7} | fields
        return request_for(prompt=behaviour, **fields)

    return make


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- with the real libraries -------------------------------------------------------------------------------------------


def real(**fields: Any) -> GenerationRequest:
    size = {"height": 64, "width": 96, "num_frames": 5, "num_inference_steps": 2}
    return GenerationRequest(**({"model": str(tiny_model("t2v")), "prompt": "a red ball", "seed": 5} | size | fields))


def pixels(supervisor: Supervisor, **fields: Any) -> list[np.ndarray]:
    results = supervisor.submit(real(**fields)).results(60)
    return [result.frames.frames for result in results if result.frames is not None]


def test_each_video_is_byte_for_byte_what_a_job_with_its_seed_makes(supervisor):
    first, second = pixels(supervisor, num_videos=2)
    assert (first == pixels(supervisor, seed=5)[0]).all()
    assert (second == pixels(supervisor, seed=6)[0]).all()
    assert (first != second).any()


def test_videos_at_once_differ_by_the_order_of_sums_and_are_made_again_to_the_byte(supervisor, tmp_path):
    alone = pixels(supervisor, num_videos=3)
    results = supervisor.submit(
        real(num_videos=3, videos_at_once=2, output=str(tmp_path / "fox.npy"), preview=str(tmp_path / "seen"))
    ).results(60)
    for result, frames in zip(results, alone, strict=True):
        assert result.output_path is not None
        difference = np.abs(np.load(result.output_path).astype(int) - frames)
        assert difference.max() <= 1 and (difference != 0).mean() < 0.01
    assert names(tmp_path / "seen") == ["video-1", "video-2", "video-3"]
    assert "frame_000001.png" in names(tmp_path / "seen" / "video-3")
    # The second was denoised with the first, and says so; the third alone.
    fields, document = request_again(str(tmp_path / "fox-2.npy.json"))
    assert (fields["seed"], fields["num_videos"], fields["videos_at_once"]) == (5, 2, 2)
    assert document["at_once"] == {"video": 2, "of": 2}
    told = Again(str(tmp_path / "fox-2.npy.json"), Mode.SAFE, restricted=False)
    assert told.note == "that video is number 2 of 2 that were denoised at once: all of them are made again"
    assert document["result"]["metadata"]["generation_params"]["seed"] == 6
    again = supervisor.submit(GenerationRequest(**fields)).results(60)[1]
    assert (again.frames.frames == np.load(tmp_path / "fox-2.npy")).all()
    fields, document = request_again(str(tmp_path / "fox-3.npy.json"))
    assert fields["seed"] == 7 and "num_videos" not in fields and "at_once" not in document
    (again,) = supervisor.submit(GenerationRequest(**fields)).results(60)
    assert (again.frames.frames == np.load(tmp_path / "fox-3.npy")).all()


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        pytest.param("flf2v", ("image", "last_image"), marks=pytest.mark.long),  # with an image encoder
        pytest.param("t2v", ("video",), marks=pytest.mark.long),
        ("vace", ("video", "mask", "references")),
    ],
)
def test_pipelines_that_are_helped_to_make_several_at_once_make_those_of_their_seeds(supervisor, tmp_path, kind, given):
    fields: dict[str, Any] = {"model": str(tiny_model(kind)), "guidance_scale": 4.0, "num_videos": 2}
    for number, name in enumerate(given):
        frames = np.random.default_rng(number).integers(0, 256, (5 if name in ("video", "mask") else 1, 64, 96, 3))
        first, *others = (PIL.Image.fromarray(frame.astype(np.uint8)) for frame in frames)
        path = tmp_path / f"{name}.gif"
        first.save(path, save_all=True, append_images=others)
        fields[name] = (str(path),) if name == "references" else str(path)
    alone, together = pixels(supervisor, **fields), pixels(supervisor, videos_at_once=2, **fields)
    for one, other in zip(alone, together, strict=True):
        difference = np.abs(one.astype(int) - other)
        assert difference.max() <= 1 and (difference != 0).mean() < 0.01
    assert (alone[0] != alone[1]).any()


def test_memory_of_videos_at_once_is_what_was_planned(supervisor):
    request = real(num_videos=4, videos_at_once=4, guidance_scale=4.0, count_memory=True)
    counted = supervisor.submit(request).result(60).peak
    for phase, planned in plan_model(request).choice.chosen.phases.items():
        assert 0.99 < planned.counted / counted[f"{phase}_bytes"] < 1.15, phase


def test_a_pipeline_that_makes_one_at_once_is_refused_before_anything_starts():
    request = GenerationRequest(
        model=str(tiny_model("chronoedit")), prompt="x", image="x.png", num_videos=2, videos_at_once=2
    )
    model = choose_model(request.model, request.mode, threads=1, memory_limit_bytes=1 << 40)
    with pytest.raises(errors.InvalidRequest, match="ChronoEditPipeline makes one video at once, not 2") as caught:
        resolve_request(request, model, seed=0)
    assert "one after the other" in caught.value.fixes[0]
    resolve_request(request.model_copy(update={"videos_at_once": 1}), model, seed=0)


# -- with workers that pretend -----------------------------------------------------------------------------------------


def test_every_video_has_its_file_its_seed_its_sidecar_and_its_events(pretended, asked, tmp_path):
    job = pretended.submit(asked("well"))
    results = job.results(30)
    assert job.result() is results[0] and results[0].others == results[1:]
    files = [f"fox-{number}.npy" for number in (1, 2, 3)]
    assert names(tmp_path) == sorted([*files, *(f"{name}.json" for name in files)])
    assert [Path(result.output_path).name for result in results] == files
    assert [result.metadata.generation_params["seed"] for result in results] == [7, 8, 9]
    requests = [request_again(str(tmp_path / f"{name}.json"))[0] for name in files]
    assert [fields["seed"] for fields in requests] == [7, 8, 9]
    assert all("num_videos" not in fields for fields in requests)
    told = [event.video for event in job.events() if isinstance(event, ev.Encoded)]
    steps = [event.video for event in job.events() if isinstance(event, ev.Progress) and event.phase == "denoise"]
    assert told == [0, 1, 2] and steps == [0, 0, 1, 1, 2, 2]
    document = json.loads(json.dumps(results[0].to_json()))
    assert [(one["video"], one["seed"]) for one in document["videos"]] == [(0, 7), (1, 8), (2, 9)]
    assert document["output_path"] == document["videos"][0]["output_path"] and "others" not in document


def test_frames_in_memory_come_for_each_video(pretended, asked):
    results = pretended.submit(asked("well", output=None, num_videos=2, videos_at_once=2)).results(30)
    assert [result.frames.frames.shape for result in results] == [(9, 64, 96, 3)] * 2
    assert results[0].frames.frames[3].max() == 3 and results[1].frames.frames[0].max() == 9  # numbers of frames


def test_a_name_that_is_taken_is_refused_before_a_worker_starts(pretended, asked, tmp_path):
    (tmp_path / "fox-3.npy").write_bytes(b"mine")
    job = pretended.submit(asked("well"))
    with pytest.raises(errors.OutputExists, match=r"fox-3\.npy") as caught:
        job.results(30)
    assert caught.value.exit_code == 2
    assert not [event for event in job.events() if isinstance(event, ev.Started | ev.PhaseStarted)]
    assert names(tmp_path) == ["fox-3.npy"]
    assert len(pretended.submit(asked("well", overwrite=True)).results(30)) == 3


def test_a_failure_keeps_the_videos_before_it_and_says_what_makes_the_others(pretended, asked, tmp_path):
    with pytest.raises(errors.WorkerDied) as caught:
        pretended.submit(asked("frame:exit@8")).results(30)
    error = caught.value
    assert error.details["videos_finished"] == [str(tmp_path / "fox-1.npy")] and error.details["next_seed"] == 8
    left = f"--seed 8 --num-videos 2 --output {tmp_path / 'fox-more.npy'}"
    assert error.fixes[0] == f"1 of 3 videos is finished: keep it, and make the others with {left}"
    assert [result.output_path for result in error.finished] == [str(tmp_path / "fox-1.npy")]
    assert names(tmp_path) == ["fox-1.npy", "fox-1.npy.json"]
    assert np.load(tmp_path / "fox-1.npy").shape == (9, 64, 96, 3)


def test_frames_in_memory_of_finished_videos_come_with_the_error(pretended, asked):
    with pytest.raises(errors.WorkerDied) as caught:
        pretended.submit(asked("frame:exit@9", output=None)).results(30)
    finished = caught.value.finished
    assert [result.metadata.generation_params["seed"] for result in finished] == [7, 8]
    assert all(result.frames.frames[3].max() == 3 for result in finished)
    assert caught.value.details["videos_finished"] == [] and "finished" in caught.value.fixes[0]


def test_a_warning_about_one_video_is_in_its_result_and_told_once(pretended, asked, monkeypatch):
    from wan_compat.supervisor import delivery, sidecar

    write, commit = sidecar.write, delivery.Delivery.commit

    def fails(path: str, *rest: Any) -> None:
        if "fox-2" in path:
            raise OSError("no room")
        write(path, *rest)

    def warns(self: delivery.Delivery) -> Any:
        if "fox-3" in self.path:
            self.warnings.append("a picture")
        return commit(self)

    monkeypatch.setattr(sidecar, "write", fails)
    monkeypatch.setattr(delivery.Delivery, "commit", warns)
    job = pretended.submit(asked("well"))
    common, of_second, of_third = (result.warnings for result in job.results(30))
    assert of_second == [*common, "the sidecar could not be written: no room"] and of_third == [*common, "a picture"]
    told = [event.message for event in job.events() if isinstance(event, ev.Warned)]
    assert sorted(told) == sorted([*common, of_second[-1], of_third[-1]])


def test_recovery_of_a_video_makes_no_finished_one_again(pretended, asked, tmp_path):
    job = pretended.submit(asked("slow@8", recover=True))
    killed = False
    for event in job.events():
        if isinstance(event, ev.Progress) and event.video == 1 and not killed:
            killed = True
            (worker,) = [one for one in pretended.status().workers if one.job == job.id]
            os.kill(worker.pid, signal.SIGKILL)
    results = job.results(30)
    assert [len(result.recovery) for result in results] == [0, 1, 0]
    assert [event.video for event in job.events() if isinstance(event, ev.Encoded)] == [0, 1, 2]
    assert [event.video for event in job.events() if isinstance(event, ev.Recovering | ev.Recovered)] == [1, 1]


def test_what_stands_of_videos_at_once_is_not_made_again_either(pretended, asked, tmp_path):
    """The worker dies in the second of two; the next one is asked for that alone."""
    job = pretended.submit(asked("second:exit-when-read", num_videos=2, videos_at_once=2, recover=True))
    first, second = job.results(30)
    assert first.recovery == [] and len(second.recovery) == 1
    params = [result.metadata.generation_params for result in (first, second)]
    assert [(one["seed"], one["videos_at_once"]) for one in params] == [(7, 2), (8, 1)]
    assert [event.video for event in job.events() if isinstance(event, ev.Encoded)] == [0, 1]
    fields, _ = request_again(str(tmp_path / "fox-2.npy.json"))
    assert fields["seed"] == 8 and "num_videos" not in fields
    assert request_again(str(tmp_path / "fox-2.npy"))[0] == fields  # by the video that it lies beside


@pytest.mark.parametrize("behaviour", ["too-many-frames", "second:skip-frame", "second:repeat-frame"])
def test_other_videos_than_were_asked_for_break_the_protocol(behaviour, pretended, asked, tmp_path):
    fields = {"num_videos": 2, "videos_at_once": 2}
    with pytest.raises(errors.CorruptFrame):
        pretended.submit(asked(behaviour, **fields)).results(30)
    # One that was whole before may stand; of the other there is nothing, and no part of either.
    assert set(names(tmp_path)) <= {"fox-1.npy", "fox-1.npy.json"}
