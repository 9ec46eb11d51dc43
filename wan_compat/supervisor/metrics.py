"""Metrics for Prometheus, of one supervisor: as a file for node_exporter's textfile collector, or over HTTP.

    wan_compat_jobs_total{state, code}        jobs that ended; `code` is the error's
    wan_compat_job_seconds, ..._wait_seconds  how long they ran, and waited before
    wan_compat_phase_seconds{phase}           how long their phases took
    wan_compat_frames_total                   frames of videos that were done
    wan_compat_recoveries_total{outcome}      failures inside jobs, survived or not
    wan_compat_incidents_total{kind}          what only an attacker or a grave bug does
    wan_compat_unusual_total                  times that a worker's consumption was unusual
    gauges                                    queue, workers, their memory, the machine's; read when they are asked for

Labels have few values by design: no model, no prompt and no path is ever one. Over HTTP it answers on the loopback
interface only, to requests that name it so: a page in a browser cannot read it through a name of its own.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import socketserver
import threading
import time
import wsgiref.simple_server
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from wan_compat._version import __version__
from wan_compat.protocol.errors import EnvironmentLacks, InvalidRequest, WanCompatError
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.observers import Observer
from wan_compat.supervisor.outputs import prepare_document

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from wan_compat.supervisor.client import Supervisor
    from wan_compat.supervisor.job import Job

FILE_PERIOD_S = 10.0
REQUEST_TIMEOUT_S = 10.0

# From a tiny model's tenth of a second to a night.
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 28800)
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(?P<port>\d{1,5})")


class Metrics(Observer):
    """Counts what a supervisor's jobs do, and gives it out.

    Args:
        where: A file's path, which is replaced whole every FILE_PERIOD_S and at the end; or `127.0.0.1:9464`.

    Attributes:
        address: (host, port) that answers, None for a file.

    Raises:
        EnvironmentLacks: prometheus-client is not installed, or the port is taken.
        InvalidRequest: An address that others could reach.
        OutputNotWritable, DiskExceeded: The file cannot be written.
    """

    name = "the metrics"

    def __init__(self, supervisor: Supervisor, where: str | os.PathLike[str]) -> None:
        prometheus = _prometheus()
        self._registry: CollectorRegistry = prometheus.CollectorRegistry()
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[str, float]] = {}

        def counter(name: str, text: str, *labels: str) -> Any:
            return prometheus.Counter(name, text, labels, namespace="wan_compat", registry=self._registry)

        def seconds(name: str, text: str, *labels: str) -> Any:
            return prometheus.Histogram(
                name, text, labels, namespace="wan_compat", buckets=_SECONDS, registry=self._registry
            )

        self._jobs = counter("jobs", "Jobs that ended, by state and error code.", "state", "code")
        self._job_seconds = seconds("job_seconds", "How long jobs ran.")
        self._wait_seconds = seconds("job_wait_seconds", "How long jobs waited before they ran.")
        self._phase_seconds = seconds("phase_seconds", "How long phases of jobs took.", "phase")
        self._frames = counter("frames", "Frames of videos that were done.")
        self._recoveries = counter("recoveries", "Failures inside jobs, by how recovery went.", "outcome")
        self._incidents = counter("incidents", "What only an attacker or a grave bug does, by kind.", "kind")
        self._unusual = counter("unusual", "Times that a worker's consumption was unusual.")
        self._registry.register(_Gauges(supervisor))
        self._generate: Callable[..., bytes] = prometheus.generate_latest
        self._ended = threading.Event()
        self.address: tuple[str, int] | None = None
        self._server: _Server | None = None
        address = loopback_address(os.fspath(where))
        if address is None:
            self._path = os.path.abspath(where)
            self._write()
            self._thread = threading.Thread(target=self._keep_writing, name="wan-compat-metrics", daemon=True)
        else:
            self._server = _serve(address, prometheus.make_wsgi_app(self._registry))
            self.address = (address[0], self._server.server_port)
            # 0.1: seconds until it sees that it shall end.
            self._thread = threading.Thread(
                target=self._server.serve_forever, args=(0.1,), name="wan-compat-metrics", daemon=True
            )
        self._thread.start()

    def event(self, job: Job[Any], event: ev.Event) -> None:
        if isinstance(event, ev.PhaseStarted):
            self._phase(job, event.phase)
        elif isinstance(event, ev.Recovered):
            self._recoveries.labels("succeeded" if event.outcome == "succeeded" else "failed").inc()
        elif isinstance(event, ev.Incident):
            self._incidents.labels(event.incident.kind).inc()
        elif isinstance(event, ev.Unusual):
            self._unusual.inc()
        elif isinstance(event, ev.Finished | ev.Ended):
            self._phase(job, None)
            status = job.status()
            self._jobs.labels(status.state, status.error_code or "").inc()
            if status.started_unix_s is not None and status.ended_unix_s is not None:
                self._job_seconds.observe(max(0.0, status.ended_unix_s - status.started_unix_s))
                self._wait_seconds.observe(max(0.0, status.started_unix_s - status.submitted_unix_s))
            videos = getattr(event.result, "videos", []) if isinstance(event, ev.Finished) else []
            self._frames.inc(sum(video.output.num_frames for video in videos if video.output is not None))

    def close(self) -> None:
        self._ended.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._thread.join(REQUEST_TIMEOUT_S)
        if self._server is None:
            self._write()

    def _phase(self, job: Job[Any], phase: str | None) -> None:
        """The phase of a job before this one is over."""
        now = time.monotonic()
        with self._lock:
            before = self._phases.pop(job.id, None)
            if phase is not None:
                self._phases[job.id] = (phase, now)
        if before is not None:
            self._phase_seconds.labels(before[0]).observe(now - before[1])

    def _keep_writing(self) -> None:
        while not self._ended.wait(FILE_PERIOD_S):
            # A disk that is full now may not be in ten seconds; the file's age tells who reads it.
            with contextlib.suppress(WanCompatError, OSError):
                self._write()

    def _write(self) -> None:
        with prepare_document(self._path, overwrite=True) as target:
            with open(target.part_path, "wb") as file:
                file.write(self._generate(self._registry))
            target.commit()


def loopback_address(where: str) -> tuple[str, int] | None:
    """Return (host, port) of an address such as `127.0.0.1:9464`, None where `where` is a path.

    Raises:
        InvalidRequest: An address that is not on the loopback interface, or a port that is none.
    """
    found = _ADDRESS.fullmatch(where)
    if found is None:
        return None
    host = found["host"].strip("[]")
    # `localhost` is looked up by nobody here: what it means is 127.0.0.1.
    host = "127.0.0.1" if host == "localhost" else host
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise InvalidRequest(
            f"metrics at {where!r} could be read by other machines",
            hint="use 127.0.0.1:PORT or [::1]:PORT, or a file; a path such as ./a:1 needs its ./",
        )
    if int(found["port"]) > 65535:
        raise InvalidRequest(f"{found['port']} is not a port: they end at 65535")
    return host, int(found["port"])


def _prometheus() -> Any:
    try:
        import prometheus_client
    except ImportError as error:
        raise EnvironmentLacks(
            "metrics need the package prometheus-client, which is not installed",
            hint='pip install "wan-compat[metrics]"',
        ) from error
    return prometheus_client


class _Gauges:
    """What a supervisor's status says, as gauges; asked for at each collection."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def describe(self) -> Iterable[Metric]:
        return ()  # so that registering does not ask for a status

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        status = self._supervisor.status()
        machine = status.machine
        info = GaugeMetricFamily("wan_compat_info", "The program; always 1.", labels=["version", "mode"])
        info.add_metric([__version__, status.mode], 1)
        yield info
        activities = dict.fromkeys(("starting", "busy", "idle", "ending"), 0)
        for worker in status.workers:
            activities[worker.activity] += 1
        workers = GaugeMetricFamily("wan_compat_workers", "Worker processes, by what they do.", labels=["activity"])
        for name, count in activities.items():
            workers.add_metric([name], count)
        yield workers
        vram = [worker.vram_bytes for worker in status.workers if worker.vram_bytes is not None]
        for name, text, value in (
            ("start_time_seconds", "When the supervisor started, in Unix time.", status.started_unix_s),
            ("queue_length", "Jobs that wait.", status.queued_count),
            ("jobs_running", "Jobs that run.", len(status.running)),
            ("paused", "Whether no more jobs are started.", int(status.paused)),
            ("workers_limit", "Jobs that may run at once.", status.max_workers),
            ("worker_memory_bytes", "Memory of all workers.", sum(worker.rss_bytes for worker in status.workers)),
            (
                "worker_memory_limit_bytes",
                "Limits of all workers together.",
                sum(worker.memory_limit_bytes for worker in status.workers),
            ),
            ("worker_vram_bytes", "GPU memory of all workers.", sum(vram) if vram else None),
            ("machine_memory_bytes", "Memory of the machine.", machine.ram_total_bytes),
            ("machine_memory_available_bytes", "Memory that is free or can be freed.", machine.ram_available_bytes),
            ("machine_vram_bytes", "Memory of all GPUs.", machine.vram_total_bytes),
            ("machine_vram_used_bytes", "Used memory of all GPUs.", machine.vram_used_bytes),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"wan_compat_{name}", text, value=value)


# -- over HTTP ---------------------------------------------------------------------------------------------------------


class _Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(wsgiref.simple_server.WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S  # of a socket that says nothing

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: standard error is the program's."""


def _serve(address: tuple[str, int], app: Callable[..., Iterable[bytes]]) -> _Server:
    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "").rpartition(":")[0].strip("[]")
        allowed = host in (address[0], "localhost") and environ.get("REQUEST_METHOD") in ("GET", "HEAD")
        if not allowed or environ.get("PATH_INFO") not in ("/", "/metrics"):
            start_response("403 Forbidden" if not allowed else "404 Not Found", [("Content-Type", "text/plain")])
            return [b"wan-compat metrics: GET /metrics on the loopback interface\n"]
        return app(environ, start_response)

    try:
        return wsgiref.simple_server.make_server(
            *address, guarded, server_class=_Server6 if ":" in address[0] else _Server, handler_class=_Handler
        )
    except OSError as error:
        raise EnvironmentLacks(
            f"metrics cannot be offered at {address[0]}:{address[1]}: {error.strerror}",
            hint="choose another port; 0 takes any that is free",
        ) from error
