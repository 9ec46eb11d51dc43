"""`wan-compat serve`: a process of its own, its clients, and its end."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.assets.tiny_wan import tiny_model
from tests.cli.conftest import RunCli, command
from wan_compat import GenerationRequest, RemoteJob, RemoteSupervisor, connect
from wan_compat.protocol import errors
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.attach import find_supervisors

PROGRAM = (str(Path(__file__).parents[1] / "programs" / "serve_slowly.py"),)

Serve = Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]]


@pytest.fixture
def serve(tmp_path: Path, environment: dict[str, str]) -> Iterator[Serve]:
    """Return a function that starts `serve --json ARGUMENTS` and returns its process and its document."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
            words = command("serve", "--json", "--socket", tmp_path / "s", *arguments, program=PROGRAM)
            process = stack.enter_context(
                subprocess.Popen(
                    words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            lines = []
            while not lines or lines[-1] != "}\n":
                lines.append(process.stdout.readline())
                assert lines[-1], "it ended before it served"
            return process, json.loads("".join(lines))

        yield start


def request(steps: int = 2, **fields: Any) -> GenerationRequest:
    size = {"height": 64, "width": 96, "num_frames": 9, "num_inference_steps": steps, "seed": 1, "recover": False}
    return GenerationRequest(model=str(tiny_model("t2v")), prompt="a red ball", **size, **fields)


def running(remote: RemoteSupervisor, **fields: Any) -> RemoteJob:
    """Return a job that denoises now."""
    job = remote.submit(request(**fields))
    for event in job.events():
        if isinstance(event, ev.Progress) and event.phase == "denoise":
            return job
    raise AssertionError("it ended")


def wait_until_draining(remote: RemoteSupervisor) -> None:
    deadline = time.monotonic() + 20
    while not remote.status().draining and time.monotonic() < deadline:
        time.sleep(0.02)


def test_the_first_signal_finishes_what_is_there_and_the_last_results_are_fetched(serve, cli: RunCli, tmp_path):
    process, document = serve("--workers", "2")
    assert document["socket"] == str(tmp_path / "s") and document["pid"] == process.pid
    assert (document["mode"], document["workers"]) == ("safe", 2)

    second = cli("serve", "--socket", tmp_path / "s")
    assert second.code == 2 and f"process {process.pid} serves on" in second.err
    with connect(tmp_path / "s") as remote:
        status = remote.status()
        assert status.program == "wan-compat serve" and status.serves and status.max_workers == 2
        assert document["supervisor"] in [endpoint.id for endpoint in find_supervisors()]
        first = running(remote, steps=30, output=str(tmp_path / "video.mp4"))
        waiting = [remote.submit(request(output=None)) for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        wait_until_draining(remote)
        with pytest.raises(errors.InvalidRequest, match="drained"):
            remote.submit(request())
        assert first.result(60).output is not None
        for job in waiting:
            assert job.result(60).frames.frames.shape == (9, 64, 96, 3)
    assert process.wait(30) == 0
    assert "Finishing the jobs that are there" in process.stderr.read()
    assert not (tmp_path / "s").exists() and not (tmp_path / "s.lock").exists()


def test_killed_its_socket_is_taken_over_and_the_next_ones_second_signal_ends_it_at_once(serve, tmp_path, monkeypatch):
    monkeypatch.setattr("wan_compat.supervisor.control_client.RECONNECT_S", 0.2)
    process, before = serve()
    with connect(tmp_path / "s") as remote:
        job = running(remote, steps=900)
        process.kill()
        with pytest.raises(errors.SupervisorGone):
            job.result(30)
    process, after = serve()
    assert after["supervisor"] != before["supervisor"]
    with connect(tmp_path / "s") as remote:
        with pytest.raises(errors.UnknownJob):
            remote.job("j2")
        job = running(remote, steps=900, output=str(tmp_path / "video.mp4"))
        process.send_signal(signal.SIGINT)
        wait_until_draining(remote)  # two at once may arrive as one
        process.send_signal(signal.SIGINT)
        with pytest.raises(errors.JobCancelled):
            job.result(30)
        assert process.wait(30) == 130
    assert process.stdout.read() == "" and "Interrupted" in process.stderr.read()  # one document, and it was written
    assert list(tmp_path.glob("video*")) == []


def test_what_the_settings_refuse_no_option_and_no_client_permits_and_a_client_that_drains_it_ends_it(
    serve, cli: RunCli, tmp_path, cwd
):
    (cwd / "wan-compat.toml").write_text('[policy]\nmode = "safe"\n')
    refused = cli("serve", "--socket", tmp_path / "s", "--mode", "trust")
    assert refused.code == 5 and "safe mode only" in refused.err
    process, _ = serve()
    with connect(tmp_path / "s") as remote:
        with pytest.raises(errors.RefusedByPolicy):
            remote.submit(request(mode="trust"))
        assert remote.drain(20)
    assert process.wait(30) == 0
