"""`connect()`: what a program sees of a supervisor in another process is what it would see of its own."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.supervisor.conftest import PROGRAMS
from wan_compat import GenerationRequest, Supervisor, connect
from wan_compat.protocol import control as c
from wan_compat.protocol import errors
from wan_compat.protocol.conversion import ConversionRequest
from wan_compat.protocol.status import JobStatus
from wan_compat.supervisor import events as ev
from wan_compat.supervisor import request_paths, sealed_frames
from wan_compat.supervisor import serving as serving_module
from wan_compat.supervisor.attach import find_supervisors
from wan_compat.supervisor.control_server import CONTROL
from wan_compat.supervisor.remote import RemoteSupervisor
from wan_compat.supervisor.runtime import runtime_base

RequestFor = Callable[..., GenerationRequest]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Supervisor, str]]:
    """A served supervisor whose workers behave, unless a prompt says otherwise, and its socket; its one zygote is paid
    for once."""
    path = str(tmp_path_factory.mktemp("served") / "s")
    with Supervisor(workers=2) as supervisor:
        supervisor._zygote_program = (str(PROGRAMS / "misbehaving_zygote.py"), "as-asked")
        supervisor.serve(path)
        yield supervisor, path


@pytest.fixture
def remote(serving: tuple[Supervisor, str]) -> Iterator[RemoteSupervisor]:
    with connect(serving[1]) as remote:
        yield remote


# -- the same as in one's own process ----------------------------------------------------------------------------------


def test_a_job_makes_the_same_events_and_the_same_result(serving, remote, request_for, tmp_path):
    remote.generate(request_for(output=None))  # so that neither has to load the model
    own = serving[0].submit(request_for(output=str(tmp_path / "own.mp4")))
    here = list(own.events())
    job = remote.submit(request_for(output=str(tmp_path / "remote.mp4")), label="fox")
    there = list(job.events())
    # Which of two comes first, and how many of the progress there are, may differ from one run to the next.
    assert {type(event) for event in there} == {type(event) for event in here}
    phases = [[event.phase for event in events if isinstance(event, ev.PhaseStarted)] for events in (there, here)]
    assert phases[0] == phases[1]
    assert isinstance(there[-1], ev.Finished) and there[-1].result is job.result()
    started = next(event for event in there if isinstance(event, ev.Started))
    assert isinstance(started.layers, tuple) and "seccomp" in started.layers
    result, expected = job.result(), own.result()
    assert result.output is not None and expected.output is not None
    assert result.output.sha256 == expected.output.sha256
    assert type(result) is type(expected)
    documents = [json.loads(json.dumps(one.to_json())) for one in (result, expected)]
    assert documents[0].keys() == documents[1].keys()
    assert documents[0]["metadata"] == documents[1]["metadata"]
    assert job.done() and job.state == "done" and job.status().label == "fox"


def test_relative_paths_mean_what_they_mean_here(remote, request_for, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = remote.generate(request_for(output="video.mp4"))
    assert result.output_path == str(tmp_path / "video.mp4") and (tmp_path / "video.mp4").is_file()


def test_frames_cross_without_a_file_and_nobody_can_change_them(remote, request_for):
    frames = remote.generate(request_for(output=None)).frames
    assert frames.frames.shape == (9, 64, 96, 3) and frames.fps == 16
    assert [int(frame[0, 0, 0]) for frame in frames.frames] == list(range(9))
    assert all((frame == frame[0, 0, 0]).all() for frame in frames.frames)
    with pytest.raises(ValueError, match="read-only"):
        frames.frames[0] = 1


def test_of_several_videos_all_results_and_frames_cross(serving, remote, request_for):
    asked = request_for(output=None, num_videos=2, videos_at_once=2)
    job = remote.submit(asked)
    first, second = job.results(30)
    assert job.result() is first and first.others == [second]
    assert [one.metadata.generation_params["seed"] for one in (first, second)] == [1, 2]
    assert [int(frame[0, 0, 0]) for one in (first, second) for frame in one.frames.frames] == list(range(18))
    assert first.to_json()["videos"] == json.loads(json.dumps(first.to_json()["videos"]))
    assert job.status().num_videos == 2 and job.status().video == 1
    again = remote.job(job.id).results(10)
    assert len(again) == 2 and (again[1].frames.frames == second.frames.frames).all()


def test_videos_that_stood_before_a_failure_cross_with_it(remote, request_for):
    job = remote.submit(request_for(prompt="frame:exit@2", output=None, num_videos=2))
    for found in (job, remote.job(job.id)):
        with pytest.raises(errors.WorkerDied) as caught:
            found.results(30)
        assert list(found.events())[-1].error is caught.value
        (first,) = caught.value.finished
        assert [int(frame[0, 0, 0]) for frame in first.frames.frames] == list(range(9))


def test_errors_are_of_the_same_class_with_code_and_fixes(remote, request_for, tmp_path):
    with pytest.raises(errors.ModelNotFound) as caught:
        remote.generate(request_for(model=str(tmp_path / "nothing")))
    assert caught.value.code == "model_not_found" and caught.value.fixes
    last = list(remote.submit(request_for(height=50)).events())[-1]
    assert isinstance(last, ev.Ended) and isinstance(last.error, errors.InvalidRequest)
    with pytest.raises(errors.InvalidRequest, match="GenerationRequest is needed"):
        remote.submit("a fox")
    with pytest.raises(errors.InvalidRequest, match="priority"):
        remote.submit(request_for(), priority=101)


def test_what_a_client_asks_for_only_narrows(remote, request_for):
    with pytest.raises(errors.RefusedByPolicy, match="safe mode only"):
        remote.submit(request_for(mode="trust"))


def test_conversions_are_jobs_too(remote, tmp_path):
    with pytest.raises(errors.WanCompatError) as caught:
        remote.convert(ConversionRequest(model=str(tmp_path / "old"), output=str(tmp_path / "new")))
    assert isinstance(caught.value, errors.ModelNotFound)


def test_check_scan_and_plan_answer_as_here(remote, request_for):
    model = request_for().model
    assert remote.check(model).architecture.is_wan
    assert remote.scan(model).is_safe
    assert remote.plan(model, width=64, height=64, num_frames=5).choice.fits
    assert not remote.plan(model, ram_bytes=300 << 20).choice.fits


def test_waiting_has_an_end(remote, request_for):
    remote.pause()
    try:
        job = remote.submit(request_for(output=None))
        with pytest.raises(errors.DeadlineExceeded, match="goes on"):
            job.result(0.05)
        assert not job.done() and job.state == "queued"
        (waiting,) = remote.status().queued
        assert waiting.id == job.id and waiting.label.startswith("python")  # who submitted it
        assert remote.cancel(job.id)
        with pytest.raises(errors.JobCancelled):
            job.result(10)
        assert isinstance(job.status(), JobStatus) and job.state == "cancelled"
        job.cancel()  # over already
        assert not remote.kill_worker("w99")
    finally:
        remote.resume()


def test_the_status_names_it_as_one_that_serves(serving, remote):
    assert serving[0].id in [endpoint.id for endpoint in find_supervisors()]
    with next(one for one in find_supervisors() if one.id == serving[0].id).attach() as attached:
        status = attached.status()
        assert status.id == remote.id == serving[0].id and status.serves and not status.read_only


# -- many at once ------------------------------------------------------------------------------------------------------


def test_several_threads_submit_and_follow_over_one_connection(serving, remote, request_for):
    """And over the supervisor itself; each thread gets its own job's events and frames."""
    failures: list[BaseException] = []

    def run(owner: Supervisor | RemoteSupervisor, number: int) -> None:
        try:
            for _ in range(2):
                job = owner.submit(request_for(output=None, seed=number, num_frames=5 + 4 * (number % 3)))
                seen = list(job.events())
                assert isinstance(seen[-1], ev.Finished)
                result = job.result(0)
                assert result.metadata.generation_params["seed"] == number
                assert result.frames.frames.shape[0] == 5 + 4 * (number % 3)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(remote if number % 2 else serving[0], number)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == [] and not any(thread.is_alive() for thread in threads)


def test_two_threads_see_all_events_of_one_job(remote, request_for):
    job = remote.submit(request_for(output=None))
    seen: list[list[ev.Event]] = [[], []]
    threads = [threading.Thread(target=lambda into=into: into.extend(job.events())) for into in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen[0] == seen[1] and isinstance(seen[0][-1], ev.Finished)


# -- lost and found ----------------------------------------------------------------------------------------------------


def test_a_lost_connection_comes_back_and_loses_no_event(serving, request_for):
    supervisor, path = serving
    with connect(path) as remote:
        remote.pause()
        job = remote.submit(request_for(output=None))
        # What the supervisor does to a client that broke the protocol, or the kernel to one that was stopped too long.
        remote._connection._wire.hang_up()
        assert remote.status().paused  # over the new connection
        remote.resume()
        own = supervisor.submit(request_for(output=None))
        assert [type(event) for event in job.events()] == [type(event) for event in own.events()]
        assert job.result(30).frames is not None


def test_a_job_is_taken_up_by_its_id_from_another_program(serving, request_for):
    with connect(serving[1]) as first:
        id = first.submit(request_for(output=None)).id
    with connect(serving[1]) as second:
        job = second.job(id)
        assert job.request is None and second.job(id).id == id
        assert isinstance(list(job.events())[-1], ev.Finished)
        assert job.result().frames.frames.shape == (9, 64, 96, 3)


def test_a_job_ends_with_its_client_if_it_shall(serving, request_for):
    supervisor, path = serving
    supervisor.pause()
    try:
        with connect(path) as remote:
            gone = remote.submit(request_for(output=None), cancel_on_disconnect=True)
            stays = remote.submit(request_for(output=None))
        with connect(path) as remote:
            with pytest.raises(errors.JobCancelled):
                remote.job(gone.id).result(10)
            assert remote.job(stays.id).state == "queued"
    finally:
        supervisor.resume()
    assert stays.id and connect_and_wait(path, stays.id)


def connect_and_wait(path: str, id: str) -> bool:
    with connect(path) as remote:
        return remote.job(id).result(30).success


def test_jobs_of_a_supervisor_that_is_gone_end_and_say_so(request_for, tmp_path, monkeypatch):
    supervisor = Supervisor()
    supervisor.serve(str(tmp_path / "s"))
    supervisor.pause()
    monkeypatch.setattr("wan_compat.supervisor.control_client.RECONNECT_S", 0.1)
    remote = connect(tmp_path / "s")
    job = remote.submit(request_for())
    supervisor._control.close()  # type: ignore[union-attr]
    with pytest.raises(errors.SupervisorGone, match="is gone"):
        job.result(10)
    assert isinstance(list(job.events())[-1], ev.Ended)
    job.cancel()
    with pytest.raises(errors.SupervisorGone):
        remote.status()
    supervisor.close()
    remote.close()


def test_closing_a_supervisor_tells_its_clients_how_their_jobs_ended(request_for, tmp_path):
    supervisor = Supervisor()
    supervisor.serve(str(tmp_path / "s"))
    supervisor.pause()
    with connect(tmp_path / "s") as remote:
        job = remote.submit(request_for())
        supervisor.close()
        with pytest.raises(errors.JobCancelled, match="closed before"):
            job.result(10)


def test_nobody_there_is_a_typed_error(tmp_path):
    with pytest.raises(errors.NotServing, match="nobody answers on") as caught:
        connect(tmp_path / "nobody")
    assert caught.value.hint == "start one with `wan-compat serve`"
    assert caught.value.details["socket"] == str(tmp_path / "nobody")


def test_a_supervisor_of_another_version_is_a_typed_error(tmp_path, monkeypatch):
    supervisor = Supervisor()
    supervisor.serve(str(tmp_path / "s"))
    connect(tmp_path / "s").close()  # so that the supervisor has its version
    ours = c.to_supervisor_codec
    monkeypatch.setattr(
        "wan_compat.supervisor.control_client.c.to_supervisor_codec",
        lambda: c.Codec(c.ToSupervisor, version=99, limits=c.REQUEST_LIMITS),
    )
    with pytest.raises(errors.WanCompatError, match="version"):
        connect(tmp_path / "s")
    monkeypatch.setattr("wan_compat.supervisor.control_client.c.to_supervisor_codec", ours)
    supervisor.close()


# -- serving -----------------------------------------------------------------------------------------------------------


def test_only_one_serves_at_a_socket_and_the_second_names_it(serving):
    with Supervisor() as second, pytest.raises(errors.AlreadyServing, match=f"process {os.getpid()} serves") as caught:
        second.serve(serving[1])
    assert caught.value.details == {"socket": serving[1], "pid": os.getpid()}


def test_without_a_path_both_sides_take_the_usual_one(tmp_path, monkeypatch):
    monkeypatch.setattr("wan_compat.supervisor.serving.runtime_base", lambda: str(tmp_path))
    with Supervisor() as supervisor:
        supervisor.serve(serving_module.usual_socket())
        with connect() as remote:
            assert remote.id == supervisor.id


def test_a_socket_that_a_dead_process_left_is_taken_over(tmp_path):
    import socket

    path = tmp_path / "s"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    (tmp_path / "s.lock").write_text("99999\n")
    with Supervisor() as supervisor:
        supervisor.serve(str(path))
        with connect(path) as remote:
            assert remote.id == supervisor.id
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with Supervisor() as supervisor, pytest.raises(errors.EnvironmentLacks, match="only you can write"):
        supervisor.serve(str(tmp_path / "s"))
    tmp_path.chmod(0o700)


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path):
    (tmp_path / "s").write_text("mine")
    with Supervisor() as supervisor, pytest.raises(errors.EnvironmentLacks, match="no socket"):
        supervisor.serve(str(tmp_path / "s"))
    assert (tmp_path / "s").read_text() == "mine"


def test_a_supervisor_without_a_control_socket_works_and_is_not_found(request_for):
    with Supervisor(control="none") as supervisor:
        with pytest.raises(errors.ModelNotFound):
            supervisor.generate(request_for(model="/nothing/there"))
        assert supervisor.id not in [endpoint.id for endpoint in find_supervisors()]


def test_a_control_socket_that_cannot_be_made_is_a_warning(request_for, monkeypatch):
    monkeypatch.setattr("wan_compat.supervisor.control_server.MAX_PATH_BYTES", 3)
    with Supervisor() as supervisor:
        with pytest.raises(errors.ModelNotFound):
            supervisor.generate(request_for(model="/nothing/there"))
        assert any("no control socket" in note.text for note in supervisor.status().notes)


def test_an_unknown_right_is_refused():
    with pytest.raises(errors.InvalidRequest, match="known are 'full', 'read-only' and 'none'"):
        Supervisor(control="some")


def test_the_first_job_opens_the_socket_and_closing_removes_it(request_for):
    with Supervisor(control="read-only") as supervisor:
        assert supervisor.id not in [endpoint.id for endpoint in find_supervisors()]
        job = supervisor.submit(request_for(model="/nothing/there"))
        (endpoint,) = [one for one in find_supervisors() if one.id == supervisor.id]
        with endpoint.attach() as attached:
            assert attached.greeting.read_only
            with pytest.raises(errors.RefusedByPolicy):
                attached.cancel(job.id)
        with pytest.raises(errors.ModelNotFound):
            job.result(10)
    assert supervisor.id not in [endpoint.id for endpoint in find_supervisors()]
    assert not os.path.exists(endpoint.path)


@pytest.mark.parametrize(("moment", "why"), [("start", "FileNotFoundError"), ("denoise", "PermissionError")])
def test_no_worker_reaches_the_sockets_of_its_supervisor(moment, why, request_for, tmp_path):
    """They are not in its view, and by the time that a model is loaded it can connect to nothing at all."""
    path = str(tmp_path / "s")
    with Supervisor() as supervisor:
        own = os.path.join(runtime_base(), supervisor.id, CONTROL)
        supervisor._zygote_program = (str(PROGRAMS / "misbehaving_zygote.py"), f"{moment}:knock:{path}:{own}")
        supervisor.serve(path)
        assert own in [one.path for one in find_supervisors()]
        with pytest.raises(errors.WorkerDied, match=rf"{why}\s+{why}"):
            supervisor.generate(request_for())


# -- details -----------------------------------------------------------------------------------------------------------


def test_every_path_of_a_request_is_made_absolute():
    from wan_compat.protocol import values

    assert set(request_paths._GENERATION) == set(values._PATHS) - {"model"}
    text = {name for name, field in GenerationRequest.model_fields.items() if "str" in str(field.annotation)}
    other = {
        "model",
        "prompt",
        "negative_prompt",
        "quantize",
        "precision",
        "device",
        "cache",
        "attention_backend",
        "references",
    }
    assert text - other - {"format", "codec", "offload"} == set(request_paths._GENERATION)


@pytest.mark.parametrize("change", ["shorter", "unsealed", "no memory"])
def test_frames_that_are_not_what_was_announced_are_refused(change, tmp_path):
    import numpy as np

    shape = (2, 4, 4, 3)
    if change == "unsealed":
        descriptor = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, 96)
    elif change == "no memory":
        (tmp_path / "file").write_bytes(bytes(96))
        descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    else:
        descriptor = sealed_frames.seal_frames([np.zeros((1, 4, 4, 3), dtype=np.uint8)])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(errors.ProtocolViolation):
        sealed_frames.map_frames(descriptor, [shape])
    assert len(os.listdir("/proc/self/fd")) == before - 1


@pytest.mark.parametrize("limit", [{"MAX_KEPT_FRAME_BYTES": 200_000}, {"MAX_KEPT_FRAMES": 1}], ids=str)
def test_frames_that_nobody_fetches_make_room_for_newer_ones(limit, serving, request_for, monkeypatch):
    for name, value in limit.items():
        monkeypatch.setattr(c, name, value)  # results have 165,888 bytes
    with connect(serving[1]) as remote:
        ids = []
        for _ in range(2):
            job = remote.submit(request_for(output=None))
            ids.append(job.id)
            assert job.result(30).frames is not None
    with connect(serving[1]) as later:
        assert later.job(ids[1]).result(10).frames is not None
        with pytest.raises(errors.ResourceExceeded, match="not fetched in time"):
            later.job(ids[0]).result(10)


def test_a_slow_start_of_the_server_does_not_hang_the_client(tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr("wan_compat.supervisor.control_client.CONNECT_S", 0.1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    began = time.monotonic()
    with pytest.raises(errors.NotServing):
        connect(tmp_path / "s")
    assert time.monotonic() - began < 5
    listener.close()
