"""Metrics: right numbers, few labels, a file that is whole or an address that only this machine reaches."""

from __future__ import annotations

import builtins
import http.client
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wan_compat.protocol.errors import DiskExceeded, EnvironmentLacks, InvalidRequest, OutputNotWritable
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor import events as ev
from wan_compat.supervisor import metrics as metrics_module
from wan_compat.supervisor.client import Supervisor
from wan_compat.supervisor.job import Job, Ticket
from wan_compat.supervisor.metrics import Metrics, loopback_address
from wan_compat.supervisor.operations import observe


def make_job(number: int = 1) -> Job[Any]:
    job: Job[Any] = Job(
        GenerationRequest(model="org/secret-model", prompt="a secret", output="/x/v.mp4"),
        f"j{number}",
        Ticket(),
        lambda _: None,
    )
    job.begin()
    return job


def values(text: str) -> dict[str, float]:
    return {
        match[1]: float(match[2])
        for match in re.finditer(r"^(wan_compat_\S+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
    }


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Supervisor() as made:
        yield made


def test_jobs_phases_and_what_went_wrong_are_counted(supervisor: Supervisor, tmp_path: Path) -> None:
    path = tmp_path / "wan.prom"
    metrics = Metrics(supervisor, path)
    job = make_job()
    for event in (
        ev.PhaseStarted("start_worker"),
        ev.PhaseStarted("load"),
        ev.Recovering("out of memory", "offload"),
        ev.Recovered("out of memory", "offload", "succeeded"),
        ev.Recovered("out of memory", "offload", "failed: again"),
    ):
        metrics.event(job, event)
    job.observe = metrics.event
    job.finish(InvalidRequest("no"))
    metrics.close()
    found = values(path.read_text())
    assert found['wan_compat_jobs_total{code="invalid_request",state="failed"}'] == 1
    assert found['wan_compat_phase_seconds_count{phase="start_worker"}'] == 1
    assert found['wan_compat_phase_seconds_count{phase="load"}'] == 1
    assert found['wan_compat_recoveries_total{outcome="succeeded"}'] == 1
    assert found['wan_compat_recoveries_total{outcome="failed"}'] == 1
    assert found["wan_compat_job_seconds_count"] == 1
    assert found["wan_compat_queue_length"] == 0
    assert found["wan_compat_machine_memory_bytes"] > 0
    assert found['wan_compat_workers{activity="busy"}'] == 0


def test_no_model_prompt_or_path_is_ever_a_label(supervisor: Supervisor, tmp_path: Path) -> None:
    path = tmp_path / "wan.prom"
    observe(supervisor, metrics=path)
    job = supervisor.submit(
        GenerationRequest(model=str(tmp_path / "secret"), prompt="a secret", output=str(tmp_path / "v.mp4"))
    )
    with pytest.raises(Exception, match="secret"):
        job.result(30)
    supervisor.close()
    text = path.read_text()
    assert "secret" not in text and str(tmp_path) not in text
    assert values(text)['wan_compat_jobs_total{code="model_not_found",state="failed"}'] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["wan.prom"]


def ask(address: tuple[str, int], path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*address, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_the_address_answers_this_machine_and_requests_that_name_it_so(supervisor: Supervisor) -> None:
    metrics = Metrics(supervisor, "127.0.0.1:0")
    try:
        assert metrics.address is not None
        status, text = ask(metrics.address)
        assert status == 200 and values(text)['wan_compat_info{mode="safe",version="0.1.0"}'] == 1
        assert ask(metrics.address, Host=f"localhost:{metrics.address[1]}")[0] == 200
        # A page of the web that made its own name mean 127.0.0.1.
        assert ask(metrics.address, Host="evil.example:9464")[0] == 403
        assert ask(metrics.address, Host="evil.example")[0] == 403
        assert ask(metrics.address, method="POST")[0] == 403
        assert ask(metrics.address, "/../etc/passwd")[0] == 404
        with pytest.raises(EnvironmentLacks, match=str(metrics.address[1])):
            Metrics(supervisor, f"127.0.0.1:{metrics.address[1]}")
    finally:
        metrics.close()
    with pytest.raises(OSError):
        socket.create_connection(metrics.address, 5)


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("[::1]:9464", ("::1", 9464)),
        ("127.8.8.8:80", ("127.8.8.8", 80)),
        ("wan.prom", None),
        ("/var/lib/node_exporter/wan.prom", None),
        ("./a:1", None),
    ],
)
def test_what_is_an_address_and_what_a_file(where: str, meant: tuple[str, int] | None) -> None:
    assert loopback_address(where) == meant


@pytest.mark.parametrize(
    "where", ["0.0.0.0:9464", "[::]:1", "192.168.1.2:9464", "example.com:80", "127.0.0.1:70000", "999.1.1.1:1"]
)
def test_an_address_that_others_could_reach_is_refused(where: str, supervisor: Supervisor) -> None:
    with pytest.raises(InvalidRequest):
        Metrics(supervisor, where)


def test_a_missing_extra_is_named_with_the_command(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("prometheus_client"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EnvironmentLacks) as caught:
        Metrics(supervisor, "127.0.0.1:0")
    assert caught.value.fixes == ('pip install "wan-compat[metrics]"',)


def test_a_folder_that_is_not_there_is_an_error_at_once(supervisor: Supervisor, tmp_path: Path) -> None:
    with pytest.raises(OutputNotWritable):
        Metrics(supervisor, tmp_path / "none" / "wan.prom")


def test_a_full_disk_costs_one_writing_and_not_the_metrics(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "FILE_PERIOD_S", 0.01)
    path = tmp_path / "wan.prom"
    metrics = Metrics(supervisor, path)
    real = metrics_module.prepare_document
    failures = [DiskExceeded("full")] * 3

    def fails(*arguments: Any, **keywords: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*arguments, **keywords)

    path.unlink()
    monkeypatch.setattr(metrics_module, "prepare_document", fails)
    while not path.exists():
        metrics._ended.wait(0.01)
    metrics.close()
    assert "wan_compat_info" in path.read_text()
