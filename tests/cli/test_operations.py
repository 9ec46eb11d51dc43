"""`--log-file` and `--metrics` for real, and the settings that stand for them."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import RunCli
from wan_compat.protocol.errors import EnvironmentLacks, OutputNotWritable
from wan_compat.supervisor.cli.operations import watched
from wan_compat.supervisor.cli.session import Session
from wan_compat.supervisor.client import Supervisor
from wan_compat.supervisor.demo import demo_model

MODEL = demo_model()
SMALL = ("--width", "96", "--height", "64", "--num-frames", "5", "--num-inference-steps", "1", "--fps", "8")


def logged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_a_taken_port_is_a_remark_for_the_settings_and_an_error_for_the_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Supervisor() as supervisor:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("WAN_COMPAT_METRICS", where)
        assert watched(Session(), supervisor) is supervisor
        assert f"No metrics: metrics cannot be offered at {where}" in capsys.readouterr().err
        with pytest.raises(EnvironmentLacks, match="cannot be offered"):
            watched(Session(metrics=where), supervisor)


def test_a_generation_is_logged_and_counted(cli: RunCli, cwd: Path) -> None:
    asked = ("generate", MODEL, "--prompt", "a red ball", *SMALL, "--output", "v.mp4", "--seed", "7", "--json")
    ended = cli(*asked, "--log-file", "log.jsonl", WAN_COMPAT_METRICS=str(cwd / "wan.prom"))
    assert ended.code == 0, ended
    entries = logged(cwd / "log.jsonl")
    told = [entry["event"] for entry in entries]
    assert told[0] == "supervisor_started" and told[-1] == "supervisor_closed"
    assert [name for name in told if name != "phase_started" and name != "note"][1:-1] == [
        "job_queued",
        "worker_confined",
        "first_frame",
        "encoded",
        "job_done",
    ]
    done = next(entry for entry in entries if entry["event"] == "job_done")
    assert done["job"] == "j1" and done["worker"] and done["data"]["seed"] == 7
    assert done["data"]["tier"] == ended.document["sandbox"]["tier"]
    assert "a red ball" not in (cwd / "log.jsonl").read_text()
    metrics = (cwd / "wan.prom").read_text()
    assert 'wan_compat_jobs_total{code="",state="done"} 1.0' in metrics
    assert "wan_compat_frames_total 5.0" in metrics
    assert 'wan_compat_phase_seconds_count{phase="denoise"} 1.0' in metrics


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--metrics", "0.0.0.0:9464"), 2, "other machines"),
        (("--log-file", "/proc/none/log.jsonl"), OutputNotWritable.exit_code, "--log-file"),
        (("--metrics", "none/wan.prom"), OutputNotWritable.exit_code, "none"),
    ],
)
def test_what_cannot_be_logged_to_is_said_before_anything_starts(
    options: tuple[str, ...], code: int, words: str, cli: RunCli, cwd: Path
) -> None:
    ended = cli("generate", MODEL, "--prompt", "x", *SMALL, *options)
    assert ended.code == code and words in ended.err, ended
    assert list(cwd.iterdir()) == []
