"""What a program sees of a supervisor: results, errors with codes, and nothing left behind in any case."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wan_compat import GenerationRequest, Supervisor
from wan_compat.protocol import errors
from wan_compat.supervisor import events as ev

REPOSITORY = Path(__file__).resolve().parents[2]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_well_behaved_worker_makes_a_file_and_typed_events(misbehaving, request_for, tmp_path):
    supervisor = misbehaving("well")
    job = supervisor.submit(request_for(num_frames=17))
    seen = list(job.events())
    result = job.result()
    assert result.success and result.output is not None
    assert (result.output.num_frames, result.output.width, result.output.height) == (17, 96, 64)
    assert leftovers(tmp_path) == ["video.mp4", "video.mp4.json"]
    assert [type(event) for event in seen][-2:] == [ev.Encoded, ev.Finished]
    assert isinstance(seen[0], ev.PhaseStarted) and seen[0].phase == "start_worker"
    started = next(event for event in seen if isinstance(event, ev.Started))
    assert started.tier in ("A", "B") and "seccomp" in started.layers
    assert any(isinstance(event, ev.FirstFrame) for event in seen)


def test_frames_come_back_without_a_file(misbehaving, request_for):
    result = misbehaving("well").generate(request_for(output=None))
    assert result.frames is not None and result.output is None
    assert result.frames.frames.shape == (9, 64, 96, 3)
    assert [int(frame[0, 0, 0]) for frame in result.frames.frames] == list(range(9))
    assert all((frame == frame[0, 0, 0]).all() for frame in result.frames.frames)


def test_warm_worker_serves_the_next_job_of_the_same_model(misbehaving, request_for):
    supervisor = misbehaving("well")
    first = supervisor.generate(request_for(output=None))
    second = supervisor.generate(request_for(output=None))
    assert second.timings.worker_start_s < first.timings.worker_start_s / 10
    assert second.timings.load_s == 0


def test_isolation_by_job_gives_every_job_a_fresh_worker(misbehaving, request_for):
    supervisor = misbehaving("well")
    for _ in range(2):
        assert supervisor.generate(request_for(output=None, isolation="job")).timings.load_s > 0


FAILURES = {
    "start:exit": (errors.WorkerDied, "exited with status 3"),
    "start:crash": (errors.WorkerDied, "SIG"),
    "start:garbage": (errors.ProtocolViolation, "not allowed"),
    "early-ready": (errors.ProtocolViolation, "Ready"),
    "open-door": (errors.SandboxUnavailable, "read_host_files"),
    "load:exit": (errors.WorkerDied, "while loading"),
    "load:garbage": (errors.ProtocolViolation, "undecodable|not allowed|msgpack"),
    "load:multipart": (errors.ProtocolViolation, "several parts"),
    "denoise:exit": (errors.WorkerDied, "while generating"),
    "denoise:forbidden": (errors.ForbiddenCall, r"ptrace\(0x0, .* while generating"),
    "denoise:message-flood": (errors.ProtocolViolation, "progress"),
    "denoise:bad-sequence": (errors.ProtocolViolation, "sequence number"),
    "denoise:claims-cancel": (errors.GenerationFailed, "the user wanted it"),
    "frame:exit": (errors.WorkerDied, "while generating"),
    "frame:finish-early": (errors.CorruptFrame, "finished after 2 of 9 frames"),
    "frame:skip-frame": (errors.CorruptFrame, "frame 2 expected, 5 published"),
    "frame:repeat-frame": (errors.CorruptFrame, "frame 2 expected, 1 published"),
    "frame:other-job": (errors.CorruptFrame, "not running"),
    "frame:long-doorbell": (errors.CorruptFrame, "instead of 8"),
    "frame:resize-ring": (errors.WorkerDied, "exited with status 3"),
    "too-many-frames": (errors.CorruptFrame, "frame 9 expected, 9 published"),
}


@pytest.mark.parametrize("behaviour", FAILURES)
def test_misbehaving_worker_is_a_typed_error_and_leaves_nothing(behaviour, misbehaving, request_for, tmp_path):
    kind, text = FAILURES[behaviour]
    before = open_descriptors()
    supervisor = misbehaving(behaviour)
    with pytest.raises(kind, match=text) as caught:
        supervisor.generate(request_for())
    assert type(caught.value) is kind or kind is errors.ProtocolViolation
    assert "\x1b" not in caught.value.message
    assert leftovers(tmp_path) == []
    supervisor.close()
    assert open_descriptors() == before


def test_descriptors_sent_through_the_doorbell_are_not_accepted(misbehaving, request_for):
    before = open_descriptors()
    supervisor = misbehaving("frame:doorbell-descriptors")
    with pytest.raises(errors.GenerationFailed):
        supervisor.generate(request_for())
    supervisor.close()
    assert open_descriptors() == before


def test_supervisor_goes_on_after_a_worker_died(misbehaving, request_for):
    supervisor = misbehaving("frame:exit")
    for _ in range(3):
        with pytest.raises(errors.WorkerDied):
            supervisor.generate(request_for())


def test_last_words_of_a_dead_worker_are_quoted_clean(misbehaving, request_for, tmp_path):
    log = tmp_path / "worker.log"
    with pytest.raises(errors.WorkerDied, match=r"I am leaving \\x1b\[31mnow"):
        misbehaving("denoise:exit").generate(request_for(worker_log=str(log)))
    assert r"I am leaving \x1b[31mnow\x1b[0m" in log.read_text()


def test_memory_over_the_cap_is_named_as_such(misbehaving, request_for, tmp_path):
    with pytest.raises(errors.MemoryExceeded) as caught:
        misbehaving("denoise:eat-memory").generate(request_for(memory_limit_bytes=1 << 30))
    assert caught.value.exit_code == 6
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "behaviour",
    [
        *("load:hang", "denoise:stop", "frame:spin-with-gil"),
        pytest.param("denoise:hang", marks=pytest.mark.long),
        pytest.param("frame:hang", marks=pytest.mark.long),
    ],
)
def test_worker_that_hangs_is_ended_by_the_jobs_deadline(behaviour, misbehaving, request_for, tmp_path):
    began = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded) as caught:
        misbehaving(behaviour).generate(request_for(timeout_s=2.5))
    assert caught.value.exit_code == 124
    assert time.monotonic() - began < 12
    assert leftovers(tmp_path) == []


def test_silent_worker_is_ended_without_any_timeout(misbehaving, request_for, monkeypatch):
    from wan_compat.policies import limits

    patient = limits.deadlines(weight_bytes=0, timeout_s=None)
    import dataclasses

    monkeypatch.setattr(
        "wan_compat.supervisor.job_run.deadlines", lambda **_: dataclasses.replace(patient, silence_s=1.5)
    )
    with pytest.raises(errors.WorkerSilent, match="not answered"):
        misbehaving("denoise:hang").generate(request_for())


def test_flood_of_output_neither_fills_memory_nor_stops_the_job(misbehaving, request_for, tmp_path):
    log = tmp_path / "worker.log"
    supervisor = misbehaving("denoise:print-flood")
    result = supervisor.generate(request_for(worker_log=str(log), output=None, timeout_s=60))
    assert result.success
    assert log.stat().st_size < 17 << 20
    assert "\x1b" not in log.read_text()


@pytest.mark.parametrize("moment", ["start_worker", "denoise"])
def test_cancel_ends_the_job_and_keeps_the_supervisor_usable(moment, misbehaving, request_for, tmp_path):
    supervisor = misbehaving("slow")
    job = supervisor.submit(request_for(num_inference_steps=500))
    for event in job.events():
        if isinstance(event, ev.PhaseStarted | ev.Progress) and event.phase == moment:
            job.cancel()
    with pytest.raises(errors.JobCancelled):
        job.result()
    assert leftovers(tmp_path) == []
    assert supervisor.generate(request_for()).success


def test_worker_that_ignores_cancel_is_killed_after_its_grace(misbehaving, request_for):
    job = misbehaving("denoise:hang").submit(request_for())
    for event in job.events():
        if isinstance(event, ev.PhaseStarted) and event.phase == "text_encode":
            job.cancel()
    began = time.monotonic()
    with pytest.raises(errors.JobCancelled):
        job.result(30)
    assert time.monotonic() - began < 10  # it would hang for ever


def test_close_while_a_job_runs_ends_it_at_once(misbehaving, request_for, tmp_path):
    supervisor = misbehaving("slow")
    job = supervisor.submit(request_for(num_inference_steps=500))
    queued = supervisor.submit(request_for())
    next(job.events())
    began = time.monotonic()
    supervisor.close()
    assert time.monotonic() - began < 10
    for each in (job, queued):
        with pytest.raises(errors.JobCancelled):
            each.result(1)
    with pytest.raises(errors.InvalidRequest):
        supervisor.submit(request_for())


def test_zygote_that_does_not_start_is_a_typed_error_with_its_words(misbehaving, request_for):
    with pytest.raises(errors.WorkerStartFailed, match="no libraries today"):
        misbehaving("zygote-exit").generate(request_for())


def test_result_timeout_leaves_the_job_running(misbehaving, request_for):
    job = misbehaving("slow").submit(request_for(num_inference_steps=20, output=None))
    with pytest.raises(errors.DeadlineExceeded):
        job.result(timeout=0.05)
    assert job.result(timeout=60).success


def test_jobs_from_several_threads_all_finish(misbehaving, request_for):
    supervisor = misbehaving("well")
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(supervisor.generate(request_for(output=None)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 4 and all(result.success for result in results)


BAD_INPUT = {
    "no such folder": ({"model": "/nonexistent/model"}, errors.ModelNotFound, 4),
    "no model_index": ({"model": "/usr/lib"}, errors.ModelInvalid, 4),
    "frames not 4k+1": ({"num_frames": 10}, errors.InvalidRequest, 2),
    "height does not divide": ({"height": 70}, errors.InvalidRequest, 2),
    "width does not divide": ({"width": 90}, errors.InvalidRequest, 2),
    "folder of the output is missing": ({"output": "/nonexistent/x.mp4"}, errors.OutputNotWritable, 2),
    "unknown suffix": ({"output": "/tmp/x.xyz"}, errors.InvalidRequest, 2),
    "more memory than there is": ({"memory_limit_bytes": 1 << 49}, errors.MemoryExceeded, 6),
    "too little memory": ({"memory_limit_bytes": 256 << 20}, errors.MemoryExceeded, 6),
    "trust without approval": ({"mode": "trust"}, errors.RefusedByPolicy, 5),
    "worker log in a missing folder": ({"worker_log": "/nonexistent/log"}, errors.OutputNotWritable, 2),
    "second guidance for one expert": ({"guidance_scale_2": 3.0}, errors.InvalidRequest, 2),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_before_any_process_starts(case, misbehaving, request_for):
    fields, kind, exit_code = BAD_INPUT[case]
    supervisor = misbehaving("zygote-exit", mode="trust" if fields.get("mode") == "trust" else "safe")
    with pytest.raises(kind) as caught:
        supervisor.generate(request_for(**fields))
    assert caught.value.exit_code == exit_code
    assert not isinstance(caught.value, errors.WorkerStartFailed)
    assert caught.value.fixes


def test_existing_output_is_kept_unless_overwrite_is_asked(misbehaving, request_for, tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"precious")
    supervisor = misbehaving("well")
    with pytest.raises(errors.OutputExists):
        supervisor.generate(request_for())
    assert (tmp_path / "video.mp4").read_bytes() == b"precious"
    supervisor.generate(request_for(overwrite=True))
    assert (tmp_path / "video.mp4").read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize(
    "fields", [{"prompt": 5}, {"prompt": "x" * 30_000}, {"seed": -1}, {"num_frames": 0}, {"oops": 1}]
)
def test_request_of_wrong_type_or_range_is_refused_when_built(fields):
    with pytest.raises(ValueError):
        GenerationRequest(**({"model": "m", "prompt": "p"} | fields))


@pytest.mark.parametrize(
    "options", [{"mode": "brave"}, {"min_tier": "Z"}, {"min_tier": "E"}, {"start_method": "thread"}]
)
def test_supervisor_refuses_unknown_options(options):
    with pytest.raises(errors.WanCompatError):
        Supervisor(**options)


def test_forgotten_supervisor_is_closed_when_the_program_ends(request_for):
    request = request_for(output=None)
    program = REPOSITORY / "tests" / "programs" / "misbehaving_zygote.py"
    code = (
        "import sys\nfrom wan_compat import GenerationRequest, Supervisor\nsupervisor = Supervisor()\n"
        "supervisor._zygote_program = (sys.argv[1], 'well')\n"
        "print(supervisor.generate(model=sys.argv[2], prompt='x', height=64, width=96, num_frames=9,"
        " num_inference_steps=1).success)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(program), request.model], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
