"""The example of a web server (examples/web_server.py) as a real process, asked over HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.assets.tiny_wan import tiny_model
from tests.supervisor.conftest import PROGRAMS
from wan_compat import Supervisor

WISH = {"prompt": "a red ball", "seed": 3}


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    """The supervisor that the server hands its jobs to; its workers are slow."""
    with Supervisor() as made:
        made._zygote_program = (str(PROGRAMS / "misbehaving_zygote.py"), "slow")
        made.serve(str(tmp_path_factory.mktemp("served") / "s"))
        yield made


@pytest.fixture(scope="module")
def server(repository: Path, supervisor: Supervisor) -> Iterator[httpx.Client]:
    socket = supervisor._control._listeners.values()  # type: ignore[union-attr]
    command = [sys.executable, "examples/web_server.py", "--port", "0", "--socket", next(iter(socket))]
    with subprocess.Popen(
        [*command, "--model", str(tiny_model("t2v"))], cwd=repository, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                    break
            else:
                pytest.fail("the server ended before it listened")
            with httpx.Client(base_url=found[1], timeout=30, trust_env=False) as client:
                yield client
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        finally:
            process.kill()


def events_of(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))


def test_progress_streams_and_the_video_comes(server):
    with server.stream("POST", "/videos", json={**WISH, "num_inference_steps": 3}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        seen = list(events_of(response))
    kinds = [kind for kind, _ in seen]
    assert kinds[0] == "job" and kinds[-1] == "done" and "progress" in kinds
    assert [f["step"] for kind, f in seen if kind == "progress" and f["phase"] == "denoise"] == [1, 2, 3]
    video = server.get(seen[-1][1]["url"])
    assert video.headers["content-type"] == "video/mp4" and video.content[4:8] == b"ftyp"


def test_who_leaves_takes_their_job_along(server, supervisor):
    with server.stream("POST", "/videos", json={**WISH, "num_inference_steps": 50}) as response:
        for kind, fields in events_of(response):
            if kind == "job":
                id = fields["id"]
            if kind == "progress" and fields["phase"] == "denoise":
                break
    deadline = time.monotonic() + 20
    while not (found := [job for job in supervisor.status().ended if job.id == id]) and time.monotonic() < deadline:
        time.sleep(0.02)
    (ended,) = found
    assert ended.state == "cancelled" and ended.step < 50
    assert server.get("/status").json()["running"] == 0


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        ({}, 422),
        ({**WISH, "model": "/etc"}, 422),
        ({**WISH, "output": "/tmp/x.mp4"}, 422),
        ({**WISH, "num_frames": 100_000}, 422),
    ],
)
def test_a_stranger_asks_for_what_is_offered_and_nothing_else(wish, status, server):
    assert server.post("/videos", json=wish).status_code == status


@pytest.mark.parametrize("name", ["nothing", "..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd"])
def test_only_videos_are_given_out(name, server):
    assert server.get(f"/videos/{name}").status_code == 404


def test_a_refusal_is_an_answer(server, supervisor):
    with server.stream("POST", "/videos", json={**WISH, "num_frames": 8}) as response:
        assert list(events_of(response))[-1] == ("failed", {"code": "invalid_request", "title": "Invalid request"})
