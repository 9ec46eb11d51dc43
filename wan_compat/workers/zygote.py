"""The zygote: imports the worker's libraries once, then forks a confined worker whenever the supervisor asks.

    python -I -m wan_compat.workers.zygote --control-fd N --parent-pid P [--light] [--site DIR] [--outer LAYER,...]

It sees no model, no prompt and no secret, computes nothing, and has one thread at every fork: a lock or a thread pool
that another thread holds would be broken in every child. What it says and hears is in protocol/launch.py. A light
zygote imports nothing; its workers import for themselves, after they entered (the second path, should forking with
torch loaded ever fail). Inside another program's sandbox (`sandbox/bwrap.py`) it tries first what the layers named by
--outer must deny, and tells when it is ready.

Lifetimes: the zygote dies with its supervisor (parent-death signal, and end of file on the control socket), its workers
die with the zygote. It is their reaper, so their exit status is known and no pid is reused while a pidfd is in use.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from typing import NoReturn

from wan_compat.protocol.errors import WanCompatError, WorkerStartFailed
from wan_compat.protocol.launch import (
    WORKER_DESCRIPTORS,
    SpawnFailed,
    SpawnWorker,
    WorkerExited,
    WorkerSpawned,
    ZygoteReady,
    receive_packet,
    send_packet,
)
from wan_compat.sandbox import launch as launcher
from wan_compat.sandbox import libc, selftest, spec
from wan_compat.sandbox.credentials import die_with_parent
from wan_compat.workers import gpu, huge_pages, libraries, worker

ENTRY_TIMEOUT_S = 10.0
_REAP_TIMEOUT_S = 5.0

# Without these, thread pools start at import and do not survive a fork. The supervisor makes our environment.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run until the supervisor closes the control socket, then leave nothing behind."""
    parser = argparse.ArgumentParser(description="Internal: forks workers for a wan-compat supervisor.")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--light", action="store_true", help="leave the imports to the workers")
    parser.add_argument("--site", help="a folder of packages that come before the usual ones")
    parser.add_argument("--outer", default="", help="the layers in force around this process")
    options = parser.parse_args(arguments)
    die_with_parent()
    if os.getppid() != options.parent_pid:
        raise SystemExit("zygote: its supervisor is gone already")
    for name in _ONE_THREAD:
        if os.environ.get(name) != "1":
            raise SystemExit(f"zygote: {name} must be 1")
    launcher.become_subreaper()
    outer = [layer for layer in options.outer.split(",") if layer]
    open_doors = tuple(probe.name for probe in selftest.run_outer_probes(outer) if not probe.denied)
    if options.site is not None:
        libraries.use_site(options.site)
    import_s = 0.0 if options.light else libraries.import_libraries()
    libraries.freeze()
    with socket.socket(fileno=options.control_fd) as control:
        control.set_inheritable(False)
        zygote = Zygote(control, light=options.light)
        zygote.serve(
            ZygoteReady(
                import_s=import_s, threads=libc.count_threads(), versions=libraries.versions(), open_doors=open_doors
            )
        )
    sys.stderr.flush()
    os._exit(0)  # tearing torch down takes longer than the supervisor should wait


class Zygote:
    """The workers that were forked and still live, and the socket to the supervisor."""

    def __init__(self, control: socket.socket, *, light: bool) -> None:
        self._control, self._light = control, light
        self._idle_work = iter(()) if light else huge_pages.collapse_own_memory()
        self._workers: dict[int, tuple[str, int]] = {}  # pid -> name, pidfd
        self._selector = selectors.DefaultSelector()

    def serve(self, ready: ZygoteReady) -> None:
        """Answer until end of file; then kill and reap all workers."""
        try:
            send_packet(self._control, ready)
            self._selector.register(self._control, selectors.EVENT_READ)
            while True:
                for key, _ in self._wait():
                    if key.fileobj is not self._control:
                        continue  # a pidfd: an ended worker, reaped below
                    packet = receive_packet(self._control, "to")
                    if packet is None:
                        return
                    self._spawn(*packet)
                self._reap()
        except (BrokenPipeError, ConnectionResetError):
            return  # the supervisor is gone: the same as end of file
        finally:
            self._end_workers()

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for news. Before the first worker and between workers there is time for what makes forks cheaper."""
        while not self._workers:
            events = self._selector.select(0)
            if events:
                return events
            if next(self._idle_work, None) is None:
                break
        return self._selector.select()

    def _spawn(self, order: SpawnWorker, descriptors: tuple[int, ...]) -> None:
        try:
            launched = self._launch(order, descriptors)
        except WanCompatError as error:
            layer = error.details.get("layer")
            send_packet(
                self._control,
                SpawnFailed(
                    worker=order.worker,
                    code=str(error.details.get("code", error.code)),
                    message=error.message[:4000],
                    fixes=error.fixes[:8],
                    layer=str(layer) if layer is not None else None,
                ),
            )
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._workers[launched.pid] = (order.worker, launched.pidfd)
        self._selector.register(launched.pidfd, selectors.EVENT_READ)
        # The listener is not kept, not even for a moment: the next worker is a copy of this process.
        listener = (launched.notify_fd,) if launched.notify_fd >= 0 else ()
        try:
            send_packet(
                self._control, WorkerSpawned(worker=order.worker, pid=launched.pid), (launched.pidfd, *listener)
            )
        finally:
            for descriptor in listener:
                os.close(descriptor)

    def _launch(self, order: SpawnWorker, descriptors: tuple[int, ...]) -> launcher.Launched:
        if len(descriptors) != len(WORKER_DESCRIPTORS):
            raise WorkerStartFailed(f"{len(WORKER_DESCRIPTORS)} descriptors expected, {len(descriptors)} received")
        threads = libc.count_threads()
        if threads != 1:
            raise WorkerStartFailed(
                f"the zygote has {threads} threads, and a fork copies only one",
                hint="start a new zygote, or a light one",
                details={"code": "zygote_threads"},
            )
        ring, doorbell, log = descriptors
        try:
            confinement = spec.from_wire(order.spec)
            if confinement.gpu is not None and (held := gpu.held_devices()):
                raise WorkerStartFailed(
                    f"the zygote holds {', '.join(held)}, and CUDA does not survive a fork",
                    hint="start a light zygote",
                    details={"code": "zygote_cuda"},
                )
            return launcher.launch(
                confinement,
                functools.partial(_be_worker, order, confinement, ring, doorbell, self._light),
                keep_fds=(ring, doorbell),
                output_fd=log,
                timeout_s=ENTRY_TIMEOUT_S,
                notify=True,
            )
        except WanCompatError:
            raise
        except (OSError, ValueError, TypeError) as error:
            traceback.print_exc()
            raise WorkerStartFailed(f"the worker could not be forked: {type(error).__name__}: {error}") from error

    def _reap(self) -> None:
        """Reap every ended child. Unknown ones are orphans of a worker: a subreaper adopts them."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            known = self._workers.pop(pid, None)
            if known is None:
                continue
            name, pidfd = known
            self._selector.unregister(pidfd)
            os.close(pidfd)
            send_packet(self._control, WorkerExited(worker=name, pid=pid, status=status))

    def _end_workers(self) -> None:
        for _, pidfd in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        deadline = time.monotonic() + _REAP_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.005)
            except ChildProcessError:
                return
        # A process that survives SIGKILL is stuck in the kernel; it dies when that lets it go.


def _be_worker(
    order: SpawnWorker,
    confinement: spec.ConfinementSpec,
    ring: int,
    doorbell: int,
    light: bool,
    report: launcher.EntryReport,
) -> None:
    worker.run(order, confinement, ring, doorbell, report, light=light)


if __name__ == "__main__":
    main()
