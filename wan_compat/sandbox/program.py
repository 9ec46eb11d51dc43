"""Running one Python program that nobody trusts, in a sandbox of its own: entered, tested from inside, sealed, gone.

    supervisor --exec--> python -I -m wan_compat.sandbox.program ORDER
                             |  checks the program's hash, fork, twice
                             '--> confined process: probes, seal, probes -> verdict; only then the program
    stdout   what the program wrote, both its streams
    stderr   one JSON document of the launcher: what was entered, what was not denied, how the program ended

The program has the view of a worker without a model: the interpreter and its libraries, itself as a read-only file, and
a scratch folder, which is its working folder. It has no environment and no standard input. Threads only: a program that
starts another one, or a process, fails. If a probe that should be denied succeeds, the program is not run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import runpy
import sys
from collections.abc import Sequence
from typing import Any

from wan_compat.protocol.errors import SandboxEntryFailed
from wan_compat.sandbox import runtime_view, seccomp, selftest
from wan_compat.sandbox.failure import failed
from wan_compat.sandbox.launch import EntryReport, become_subreaper, launch
from wan_compat.sandbox.spec import SCRATCH_TARGET, ConfinementSpec, Layer, StaticFile, from_wire, to_wire

MAX_PROGRAM_BYTES = 1 << 20
PROGRAM_FOLDER = "/program"

_ENTRY_TIMEOUT_S = 10.0
_MAX_VERDICT_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class ProgramReport:
    """What the launcher saw. `wait_status` is that of waitpid, None when the program was not started."""

    entered: tuple[str, ...]
    not_denied: tuple[str, ...] = ()
    wait_status: int | None = None
    error: str = ""
    hint: str = ""


def program_argv(spec: ConfinementSpec, program: str, sha256: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs `program` confined by `spec`, to which the view's files are added.

    Args:
        sha256: Of the program's content; anything else found there is not run.
    """
    order = {"spec": to_wire(spec), "program": program, "sha256": sha256, "arguments": list(arguments)}
    return [sys.executable, "-I", "-m", "wan_compat.sandbox.program", json.dumps(order)]


def read_report(stderr: bytes) -> ProgramReport:
    """Parse what the launcher said; a launcher that died without a word is a report with an error."""
    try:
        data = json.loads(stderr)
        return ProgramReport(**{**data, "entered": tuple(data["entered"]), "not_denied": tuple(data["not_denied"])})
    except (ValueError, TypeError, KeyError):
        tail = stderr.decode("utf-8", "replace").strip()[-500:]
        return ProgramReport((), error=f"the launcher said: {tail or 'nothing'}")


def main(order_text: str) -> None:
    """Carry out an order and report. Runs in the launcher, which has one thread."""
    try:
        report = _carry_out(json.loads(order_text))
    except SandboxEntryFailed as error:
        report = ProgramReport((), error=error.message, hint=error.hint or "")
    except OSError as error:
        report = ProgramReport((), error=f"the program cannot be read: {error.strerror}")
    sys.stderr.write(json.dumps(dataclasses.asdict(report)))
    sys.stderr.flush()


def _carry_out(order: dict[str, Any]) -> ProgramReport:
    become_subreaper()
    spec = from_wire(order["spec"])
    content = _read(order["program"], order["sha256"])
    target = f"{PROGRAM_FOLDER}/{os.path.basename(order['program'])}"
    files = (*runtime_view.runtime_files(spec.identity), StaticFile(target, content))
    view = dataclasses.replace(spec.view, binds=runtime_view.runtime_binds(), files=files)
    spec = dataclasses.replace(spec, view=view)
    reader, writer = os.pipe()

    def body(entry: EntryReport) -> None:
        denied = {probe.name for probe in selftest.run_probes((writer,)) if probe.denied}
        expected = selftest.expected_denied(entry.layers)
        if Layer.SECCOMP in spec.layers:
            seccomp.seal()
            denied |= {probe.name for probe in selftest.run_sealed_probes() if probe.denied}
            expected |= selftest.expected_sealed(entry.layers)
        open_doors = sorted(expected - denied)
        os.write(writer, json.dumps(open_doors).encode())
        os.close(writer)
        if open_doors:
            raise SystemExit(1)
        os.chdir(SCRATCH_TARGET)
        sys.argv = [target, *order["arguments"]]
        runpy.run_path(target, run_name="__main__")

    try:
        launched = launch(spec, body, keep_fds=(writer,), output_fd=1, timeout_s=_ENTRY_TIMEOUT_S)
        os.close(writer)
        writer = -1
        said = b""
        while len(said) < _MAX_VERDICT_BYTES and (chunk := os.read(reader, 4096)):
            said += chunk
        status = os.waitpid(launched.pid, 0)[1]
        os.close(launched.pidfd)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if not said:
        return ProgramReport(launched.report.layers, error="the confined process died during its self-test")
    return ProgramReport(launched.report.layers, not_denied=tuple(json.loads(said)), wait_status=status)


def _read(path: str, sha256: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(MAX_PROGRAM_BYTES + 1)
    if len(content) > MAX_PROGRAM_BYTES or hashlib.sha256(content).hexdigest() != sha256:
        raise failed("launch", f"{path} is not the program that was asked for", "try again when nothing writes to it")
    return content


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(sys.argv[1])
