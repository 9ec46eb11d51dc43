"""Conversions end to end: what comes out makes the very frames of what went in, or there is nothing at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.assets.original_layout import original_model
from tests.assets.tiny_wan import tiny_model
from wan_compat.protocol import errors
from wan_compat.protocol import messages as m
from wan_compat.protocol.conversion import MAX_LISTED, ConversionRequest, ListedTensor
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor import conversion
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.inspection import read_facts
from wan_compat.supervisor.restart_guard import conversion_key_of, key_of

VIDEO: dict[str, Any] = {
    "prompt": "a red ball", "height": 64, "width": 96, "num_frames": 5, "num_inference_steps": 2, "seed": 1,
}  # fmt: skip


def weights(folder: Path) -> dict[str, dict[str, bytes]]:
    """Component -> tensor -> type, shape and bytes."""
    found: dict[str, dict[str, bytes]] = {}
    for path, file in read_facts(str(folder)).weights.items():
        raw = (folder / path).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        component = found.setdefault(path.partition("/")[0], {})
        for name in file.tensors:
            start, end = (8 + length + offset for offset in header[name]["data_offsets"])
            described = f"{header[name]['dtype']} {header[name]['shape']} ".encode()
            component[name.removeprefix("vision_model.")] = described + raw[start:end]
    return found


def nothing_in(folder: Path) -> bool:
    return list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["t2v", "ti2v", "a14b"])
def test_pickled_original_generates_the_very_frames_of_the_model_it_came_from(supervisor, tmp_path, kind):
    original, source = original_model(kind)
    output = tmp_path / "converted"
    report = supervisor.convert(model=str(original), output=str(output))
    assert report.pipeline_class == "WanPipeline" and report.warnings == []
    assert weights(output) == weights(source)
    mine = supervisor.generate(model=str(output), output=None, **VIDEO).frames.frames
    theirs = supervisor.generate(model=str(source), output=None, **VIDEO).frames.frames
    assert np.array_equal(mine, theirs) and mine.std() > 1


@pytest.mark.parametrize("kind", ["i2v", "vace"])
def test_every_tensor_and_size_of_other_kinds_comes_back(supervisor, tmp_path, kind):
    original, source = original_model(kind)
    output = tmp_path / "converted"
    supervisor.convert(model=str(original), output=str(output))
    assert weights(output) == weights(source)
    for config in sorted(source.glob("*/config.json")):
        mine = json.loads((output / config.relative_to(source)).read_text())
        theirs = json.loads(config.read_text())
        assert {name: value for name, value in mine.items() if theirs.get(name, value) != value} == {}
    ours, recorded = (json.loads((folder / "model_index.json").read_text()) for folder in (output, source))
    parts = {name for name, entry in recorded.items() if isinstance(entry, list) and entry[0]}
    assert {name for name, entry in ours.items() if isinstance(entry, list)} == parts
    assert ours["_class_name"] == recorded["_class_name"]


def test_diffusers_folder_with_pickles_becomes_one_that_generate_runs(supervisor, tmp_path):
    original, source = original_model("t2v")
    pickled = original.parent / "pickled"
    with pytest.raises(errors.PickleRefused):
        supervisor.generate(model=str(pickled), output=None, **VIDEO)
    supervisor.convert(model=str(pickled), output=str(tmp_path / "converted"))
    assert weights(tmp_path / "converted") == weights(source)
    assert supervisor.generate(model=str(tmp_path / "converted"), output=None, **VIDEO).success


def test_single_pickle_becomes_one_component(supervisor, tmp_path):
    original, source = original_model("i2v")
    clip = next(original.glob("models_clip*.pth"))
    report = supervisor.convert(model=str(clip), output=str(tmp_path / "clip"))
    assert report.pipeline_class is None
    assert sorted(path.name for path in (tmp_path / "clip").iterdir()) == ["config.json", "model.safetensors"]
    assert weights(tmp_path / "clip")["model.safetensors"] == weights(source)["image_encoder"]
    assert report.dropped[clip.name] == ["log_scale", "textual.token_embedding.weight", "visual.head"]


def test_report_names_every_file_with_its_hash(supervisor, tmp_path):
    import hashlib

    output = tmp_path / "converted"
    report = supervisor.convert(model=str(original_model("t2v")[0]), output=str(output))
    there = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert {file.path for file in report.files} == there
    for file in report.files:
        data = (output / file.path).read_bytes()
        assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert report.sandbox.self_test["inherited_descriptors"] and report.sandbox.self_test["write_outside_scratch"]
    assert json.loads(json.dumps(report.to_json()))["schema_version"] == 1


def test_events_tell_phases_and_progress(supervisor, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "_TELL_S", 0.0)
    request = ConversionRequest(model=str(original_model("t2v")[0]), output=str(tmp_path / "converted"))
    seen = list(supervisor.submit_conversion(request).events())
    assert [event.phase for event in seen if isinstance(event, ev.PhaseStarted)] == ["start_worker", "open", "convert"]
    assert any(isinstance(event, ev.Progress) and event.phase == "convert" for event in seen)
    assert isinstance(seen[-1], ev.Finished)


def test_dry_run_plans_and_writes_nothing(supervisor, tmp_path):
    output = tmp_path / "converted"
    report = supervisor.convert(model=str(original_model("t2v")[0]), output=str(output), dry_run=True)
    assert {file.path for file in report.files if file.tensors} == {
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    assert nothing_in(tmp_path)


def test_many_small_messages_and_streams_give_the_same_bytes(supervisor, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "MAX_LISTED", 3)
    monkeypatch.setattr(conversion, "MAX_SENT_BYTES", 1000)
    original, source = original_model("t2v")
    supervisor.convert(model=str(next(original.glob("*VAE.pth"))), output=str(tmp_path / "vae"))
    assert weights(tmp_path / "vae")["diffusion_pytorch_model.safetensors"] == weights(source)["vae"]


# ---- nothing half-written -------------------------------------------------------------------------------------------


def test_a_model_whose_conversions_die_again_and_again_is_given_up_and_its_jobs_are_not(
    misbehaving, tmp_path, monkeypatch
):
    monkeypatch.setattr("wan_compat.policies.restarts.PAUSES_S", (0.01, 0.01, 0.01))
    original, _ = original_model("t2v")
    supervisor = misbehaving("start:exit")

    def convert() -> None:
        supervisor.convert(model=str(original), output=str(tmp_path / "converted"))

    for _ in range(6):
        with pytest.raises(errors.WorkerDied):
            convert()
    with pytest.raises(errors.GivenUp, match="6 workers that convert this model died"):
        convert()
    request = ConversionRequest(model=str(original), output="x")
    assert conversion_key_of(request) != key_of(GenerationRequest(model=str(original), prompt="x"))
    assert nothing_in(tmp_path)


def test_phases_have_their_time_and_a_worker_that_does_nothing_is_found(misbehaving, tmp_path):
    supervisor = misbehaving("well")  # which knows nothing of conversions: it answers, and waits for an order
    original, output = str(original_model("t2v")[0]), str(tmp_path / "converted")
    with pytest.raises(errors.PhaseTimeout, match=r"^open took longer than 0\.3 s$") as caught:
        supervisor.convert(model=original, output=output, phase_timeouts={"open": 0.3})
    assert caught.value.details["set_by"] == "request" and "--phase-timeout open=" in caught.value.fixes[0]
    with pytest.raises(errors.WorkerStalled, match="while opening"):
        supervisor.convert(model=original, output=output, phase_timeouts={"stall": 0.2})
    assert nothing_in(tmp_path)


def test_worker_killed_midway_leaves_nothing(supervisor, tmp_path, monkeypatch):
    stream = conversion.ConversionRun._stream

    def killed(self, worker, *arguments):
        assert [path.suffix for path in tmp_path.iterdir()] != []
        os.kill(worker.pid, signal.SIGKILL)
        return stream(self, worker, *arguments)

    monkeypatch.setattr(conversion.ConversionRun, "_stream", killed)
    with pytest.raises(errors.WorkerDied, match="SIGKILL"):
        supervisor.convert(model=str(original_model("t2v")[0]), output=str(tmp_path / "converted"))
    assert nothing_in(tmp_path)


def test_cancelled_midway_leaves_nothing(supervisor, tmp_path, monkeypatch):
    jobs: list[Any] = []
    put = conversion.ConversionRun._put
    monkeypatch.setattr(conversion.ConversionRun, "_put", lambda *arguments: (jobs[0].cancel(), put(*arguments))[1])
    request = ConversionRequest(model=str(original_model("t2v")[0]), output=str(tmp_path / "converted"))
    jobs.append(supervisor.submit_conversion(request))
    with pytest.raises(errors.JobCancelled):
        jobs[0].result(timeout=60)
    assert nothing_in(tmp_path)


def test_what_reads_back_differently_than_planned_is_not_kept(supervisor, tmp_path, monkeypatch):
    put = conversion.ConversionRun._put
    wrong = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    header = len(wrong).to_bytes(8, "little") + wrong + b"\0" * 4

    def lie(self, out, data):
        put(self, out, header + data[len(header) :] if out.size == 0 else data)

    monkeypatch.setattr(conversion.ConversionRun, "_put", lie)
    with pytest.raises(errors.ModelInvalid, match=r"broken|not read as it was planned"):
        supervisor.convert(model=str(original_model("t2v")[0]), output=str(tmp_path / "converted"))
    assert nothing_in(tmp_path)


# ---- refused before a worker starts ---------------------------------------------------------------------------------


@pytest.fixture
def no_worker(monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("a worker was started")

    monkeypatch.setattr("wan_compat.supervisor.worker_pool.WorkerPool.acquire", fail)


@pytest.mark.usefixtures("no_worker")
def test_taken_or_impossible_outputs_are_refused_first(supervisor, tmp_path):
    original = original_model("t2v")[0]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    for output, kind in (
        (tmp_path / "taken", errors.OutputExists),
        (original / "converted", errors.InvalidRequest),
        (tmp_path / "no" / "such", errors.OutputNotWritable),
    ):
        with pytest.raises(kind):
            supervisor.convert(model=str(original), output=str(output))


@pytest.mark.usefixtures("no_worker")
def test_disk_without_room_is_refused_first(supervisor, tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: full)
    with pytest.raises(errors.DiskExceeded, match=r"0\.0 GB are free"):
        supervisor.convert(model=str(original_model("t2v")[0]), output=str(tmp_path / "converted"))


@pytest.mark.usefixtures("no_worker")
def test_what_needs_no_conversion_is_refused_first(supervisor, tmp_path):
    with pytest.raises(errors.ModelNotCompatible, match="nothing to convert"):
        supervisor.convert(model=str(tiny_model("t2v")), output=str(tmp_path / "converted"))


# ---- what a worker says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "names", "words"),
    [(1, ["a"], "1 files were to be opened"), (0, ["a", "a"], "listed twice"), (0, ["known"], "listed twice")],
)
def test_lists_that_contradict_themselves_are_violations(file, names, words):
    message = m.TensorsListed(file=file, tensors=tuple(ListedTensor(name=n, dtype="F32", shape=(1,)) for n in names))
    listed: list[dict[str, Any]] = [{"known": None}]
    with pytest.raises(errors.ProtocolViolation, match=words):
        conversion._take(message, listed)


def test_a_message_has_room_for_as_many_tensors_as_may_be_listed():
    from wan_compat.protocol.codec import from_worker_codec

    tensors = tuple(ListedTensor(name=f"{n:0256d}", dtype="F32", shape=(2**40,) * 8) for n in range(MAX_LISTED))
    message = m.TensorsListed(file=0, tensors=tensors)
    codec = from_worker_codec()
    assert codec.decode(codec.encode(message, 1)) == (1, message)
