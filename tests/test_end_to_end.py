"""The main job, whole: a prompt goes in, a contained worker makes the frames, a video comes out. Real libraries."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.assets.tiny_wan import tiny_model
from wan_compat import GenerationRequest, Supervisor, VideoGenerationResult
from wan_compat.protocol import errors
from wan_compat.supervisor import events as ev

PLAIN_SCRIPT = Path(__file__).resolve().parent / "programs" / "worker_plain_script.py"
SIZE = {"height": 64, "width": 96, "num_frames": 17, "num_inference_steps": 3}


def request(kind: str, **fields: object) -> GenerationRequest:
    defaults = {"model": str(tiny_model(kind)), "prompt": "a red ball bounces", "seed": 5, "guidance_scale": 4.0} | SIZE
    return GenerationRequest(**(defaults | fields))


def plain_script_frames(kind: str, folder: Path) -> np.ndarray:
    """Frames of a script without wan-compat, with the worker's convolution on its side too."""
    arguments = {
        "prompt": "a red ball bounces",
        "seed": 5,
        "guidance_scale": 4.0,
        "threads": len(os.sched_getaffinity(0)),
    }
    output = folder / "plain.npy"
    subprocess.run(
        [
            sys.executable,
            str(PLAIN_SCRIPT),
            str(tiny_model(kind)),
            json.dumps(arguments | SIZE | {"output_type": "np"}),
            str(output),
            "--onednn",
        ],
        check=True,
        capture_output=True,
        timeout=110,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )
    return np.load(output)


@pytest.mark.parametrize("kind", ["t2v"])  # the other kinds: test_tasks_end_to_end.py
def test_frames_equal_a_plain_diffusers_script_byte_for_byte(kind, supervisor, tmp_path):
    result = supervisor.generate(request(kind))
    assert result.frames is not None
    expected = plain_script_frames(kind, tmp_path)
    assert result.frames.frames.shape == expected.shape
    assert int((result.frames.frames != expected).sum()) == 0


@pytest.mark.parametrize("kind", ["t2v", "a14b", "ti2v"])
def test_every_kind_of_text_to_video_model_becomes_a_playable_file(kind, supervisor, tmp_path):
    output = tmp_path / "video.mp4"
    result = supervisor.generate(request(kind, output=str(output), fps=8))
    assert result.output is not None
    assert (result.output.num_frames, result.output.width, result.output.height, result.output.fps) == (17, 96, 64, 8.0)
    assert result.output.codec == "h264"
    assert result.output.bytes == output.stat().st_size
    check_document(result)


def check_document(result: VideoGenerationResult) -> None:
    document = json.loads(json.dumps(result.to_json()))
    assert document["schema_version"] == 1
    assert document["sandbox"]["tier"] in ("A", "B")
    assert {"seccomp", "landlock", "view", "net_namespace"} <= set(document["sandbox"]["layers"])
    assert document["sandbox"]["self_test"] and all(document["sandbox"]["self_test"].values())
    timings = document["timings"]
    assert set(timings) == {
        "worker_start_s",
        "load_s",
        "text_encode_s",
        "denoise_s",
        "decode_s",
        "first_frame_s",
        "encode_s",
        "total_s",
    }
    assert all(timings[name] > 0 for name in ("text_encode_s", "denoise_s", "decode_s", "first_frame_s", "total_s"))
    assert document["peak"]["worker_rss_bytes"] > 10 << 20
    assert document["recovery"] == [] and document["errors"] == []
    assert document["metadata"]["pipeline_class"] == "WanPipeline"
    assert document["metadata"]["generation_params"]["seed"] == 5


@pytest.mark.long
def test_spawned_worker_makes_the_same_frames_as_a_forked_one(supervisor):
    forked = supervisor.generate(request("t2v"))
    with Supervisor(start_method="spawn") as spawning:
        spawned = spawning.generate(request("t2v"))
    assert forked.frames is not None and spawned.frames is not None
    assert (forked.frames.frames == spawned.frames.frames).all()


def test_two_jobs_with_one_seed_are_equal_and_with_two_differ(supervisor):
    first, again, other = (supervisor.generate(request("t2v", seed=seed)) for seed in (5, 5, 6))
    assert first.frames is not None and again.frames is not None and other.frames is not None
    assert (first.frames.frames == again.frames.frames).all()
    assert (first.frames.frames != other.frames.frames).any()


def test_video_shows_its_first_frame_before_the_last_is_decoded(supervisor):
    job = supervisor.submit(request("ti2v", num_frames=33))
    order = [event for event in job.events() if isinstance(event, ev.FirstFrame | ev.Progress)]
    first = next(index for index, event in enumerate(order) if isinstance(event, ev.FirstFrame))
    last = max(index for index, event in enumerate(order) if isinstance(event, ev.Progress) and event.phase == "decode")
    assert first < last


def test_model_in_private_files_of_its_owner_is_read_without_changing_them(supervisor, tmp_path):
    """diffusers writes weights 0600; a worker under another uid still reads them, through an id-mapped mount."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model("t2v"), model)
    for path in model.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    before = {path: path.stat() for path in model.rglob("*")}
    assert supervisor.generate(request("t2v", model=str(model))).success
    for path, status in before.items():
        now = path.stat()
        assert (now.st_mode, now.st_uid, now.st_mtime_ns) == (status.st_mode, status.st_uid, status.st_mtime_ns)


def test_file_changed_between_check_and_load_is_refused(tmp_path, monkeypatch):
    """What is loaded is what was checked: the bind is compared with the file that inspection saw."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model("t2v"), model)
    target = model / "vae" / "config.json"

    from wan_compat.supervisor import worker_pool

    original = worker_pool.WorkerPool.acquire

    def acquire(self, *arguments, **options):
        target.write_text(target.read_text() + " ")
        return original(self, *arguments, **options)

    monkeypatch.setattr(worker_pool.WorkerPool, "acquire", acquire)
    with Supervisor() as supervisor, pytest.raises(errors.SandboxUnavailable, match=r"vae/config\.json"):
        supervisor.generate(request("t2v", model=str(model)))


def test_weights_that_do_not_fit_the_config_are_refused_not_filled_with_noise(supervisor, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model("t2v"), model)
    config = json.loads((model / "transformer" / "config.json").read_text())
    (model / "transformer" / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    with pytest.raises(errors.ModelCorrupt, match="transformer"):
        supervisor.generate(request("t2v", model=str(model)))
    assert supervisor.generate(request("t2v")).success


def test_what_fits_with_no_plan_is_refused_before_a_worker_starts_and_the_nearest_that_fits_is_named(tmp_path):
    output = tmp_path / "video.mp4"
    with Supervisor(memory_limit_bytes=800 << 20) as supervisor:
        with pytest.raises(errors.MemoryExceeded) as caught:
            supervisor.generate(request("t2v", height=2048, width=4096, num_frames=81, output=str(output)))
        assert caught.value.exit_code == 6
        assert re.search(r"ask for .*--num-frames \d+", caught.value.fixes[0])
        assert list(tmp_path.iterdir()) == []
        assert supervisor.generate(request("t2v", output=str(output))).success


def test_a_job_is_planned_to_stay_below_its_limit_and_the_result_says_how():
    with Supervisor(memory_limit_bytes=800 << 20) as supervisor:
        large = supervisor.generate(request("t2v", height=512, width=704, num_frames=5, num_inference_steps=1))
        small = supervisor.generate(request("t2v"))
    assert large.success and "vae_tiling:256/192" in large.metadata.optimizations_applied
    assert large.metadata.plan is not None and large.metadata.plan["name"].endswith(("tiled", "tiled-whole"))
    assert small.metadata.plan is not None and small.metadata.plan["name"] == "cpu"  # with room, nothing is done


def test_missing_ffmpeg_is_told_before_a_worker_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nothing"))
    with Supervisor() as supervisor:
        with pytest.raises(errors.FfmpegMissing) as caught:
            supervisor.generate(request("t2v", output=str(tmp_path / "video.mp4")))
    assert caught.value.exit_code == 3 and caught.value.fixes
    assert list(tmp_path.iterdir()) == []
