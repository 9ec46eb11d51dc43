"""Trying the sandbox on this machine, in a process made for it: what can be entered, does it hold, and if not, why not.

    supervisor, doctor:  run_trial() --exec--> python -I -m wan_compat.sandbox.trial --fork, twice--> a confined process
                         TrialReport <--JSON--                                       <--JSON-- probes, seal, probes
                         again

Nothing is concluded from versions or settings: the full set of layers is entered for real. Where that fails, each layer
is tried with what it needs and nothing else, so that the report names every missing one with its remedy; then whatever
can be entered is entered together, and the probes tell what that is worth. The calls that kill are tried as well, by
processes that are expected to die of them. Where an ordinary user is refused namespaces, the same is tried once more
inside a bubblewrap (`bwrap.py`), and that counts if it holds.

It imports no torch and takes a few tens of milliseconds of which most is the start of Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO, Any

from wan_compat.protocol.errors import SandboxEntryFailed
from wan_compat.sandbox import bwrap, cgroup, libc, runtime_view, seccomp, selftest
from wan_compat.sandbox.failure import bwrap_remedy, failed
from wan_compat.sandbox.launch import EntryReport, become_subreaper, launch
from wan_compat.sandbox.spec import (
    ALL_LAYERS,
    NAMESPACE_LAYERS,
    OUTER_LAYERS,
    ConfinementSpec,
    Identity,
    Layer,
    Limits,
    View,
    to_wire,
)

TIMEOUT_S = 10.0
_LIMITS = Limits(memory_bytes=512 << 20, threads=16, open_files=64, file_size_bytes=1 << 20)
_SCRATCH_BYTES = 1 << 20
# For root without a wish of its own: within systemd's range for users that exist only while a service runs.
_DEFAULT_IDENTITY = Identity(61184, 61184)


@dataclasses.dataclass(frozen=True)
class LayerTrial:
    """Whether one layer can be entered here; when not, why, and what a person can do."""

    available: bool
    reason: str = ""
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class TrialReport:
    """What this machine's sandbox is worth. Which tier that makes is for `policies` to say."""

    layers: dict[str, LayerTrial]  # every layer that was asked for
    entered: tuple[str, ...] = ()  # those that were in force together when the probes ran
    probes: tuple[selftest.ProbeResult, ...] = ()
    not_denied: tuple[str, ...] = ()  # probes that succeeded although an entered layer should deny them
    flagrant_calls_kill: bool = False
    landlock_abi: int = 0
    entry_s: float = 0.0
    error: str = ""  # why the trial itself could not be carried out
    outer: str = ""  # the program that made namespaces and view around the process, where its own were refused

    @property
    def holds(self) -> bool:
        """Whether everything that was entered also denied what it should."""
        return bool(self.entered) and not self.not_denied and not self.error


def run_trial(
    python: str = sys.executable,
    as_identity: Identity | None = None,
    use_cgroup: bool = True,
    layers: frozenset[Layer] | None = None,
) -> TrialReport:
    """Try the sandbox in a subprocess. Never raises because of what the machine lacks: the report says it.

    Args:
        python: The interpreter whose workers are meant.
        as_identity: Whom root's workers run as.
        use_cgroup: Whether to try a cgroup too (it is made here, as a supervisor does).
        layers: What to try; None is everything that applies to this user.
    """
    root = os.geteuid() == 0
    wanted = layers if layers is not None else ALL_LAYERS - ({Layer.USER_NAMESPACE} if root else set())
    if not use_cgroup:
        wanted -= {Layer.CGROUP}
    found: dict[str, LayerTrial] = {}
    group: cgroup.Cgroup | None = None
    if Layer.CGROUP in wanted:
        try:
            group = cgroup.create("trial", _LIMITS)
        except SandboxEntryFailed as error:
            found[Layer.CGROUP.value] = LayerTrial(False, error.message, error.hint or "")
            wanted -= {Layer.CGROUP}
    try:
        spec = ConfinementSpec(
            layers=frozenset(wanted),
            view=View(scratch_bytes=_SCRATCH_BYTES),
            limits=_LIMITS,
            identity=(as_identity or _DEFAULT_IDENTITY) if root else None,
            cgroup_dirs=group.dirs if group is not None else (),
        )
        report = _in_subprocess(python, spec)
        refused = [layer for layer in NAMESPACE_LAYERS & wanted if not report.layers[layer].available]
        if refused and not root and python == sys.executable and wanted >= OUTER_LAYERS:
            report = _in_bwrap(spec, report)
        return dataclasses.replace(report, layers={**found, **report.layers})
    finally:
        if group is not None:
            group.kill()
            group.remove()


def _in_subprocess(python: str, spec: ConfinementSpec) -> TrialReport:
    order = json.dumps(to_wire(spec))
    nothing = {layer.value: LayerTrial(False, "the trial could not be carried out") for layer in spec.layers}
    try:
        finished = subprocess.run(
            [python, "-I", "-m", "wan_compat.sandbox.trial", order],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
            env={"LC_ALL": "C.UTF-8"},
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return TrialReport(nothing, error=str(error))
    try:
        return _report_from_wire(json.loads(finished.stdout))
    except (ValueError, TypeError, KeyError):
        tail = finished.stderr.decode("utf-8", "replace").strip()[-500:]
        return TrialReport(nothing, error=f"the trial ended with {finished.returncode} and said: {tail or 'nothing'}")


def _in_bwrap(spec: ConfinementSpec, before: TrialReport) -> TrialReport:
    """Return the report of the same trial inside a bwrap; where that is no way either, `before` with the reason."""
    outer = OUTER_LAYERS | (spec.layers & {Layer.CGROUP})
    order = dataclasses.replace(spec, layers=spec.layers - outer - {Layer.USER_NAMESPACE}, outer=outer)
    try:
        path = bwrap.find()
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complaints:
            try:
                report, made = _run_in_bwrap(path, order, said, complaints)
            except SandboxEntryFailed as error:
                complaints.seek(0)
                tail = complaints.read().decode("utf-8", "replace").strip()[-500:]
                raise failed(
                    bwrap.NAME, f"{error.message}: {tail}" if tail else error.message, error.hint or ""
                ) from error
        if not report.holds:
            open_doors = ", ".join(report.not_denied) or report.error
            raise failed(bwrap.NAME, f"{path} does not hold: {open_doors}", bwrap_remedy())
    except SandboxEntryFailed as error:
        layers = dict(before.layers)
        own = layers[Layer.USER_NAMESPACE]
        remedy = "; or ".join(text for text in (own.remedy, error.hint) if text)
        layers[Layer.USER_NAMESPACE.value] = LayerTrial(own.available, f"{own.reason}; {error.message}", remedy)
        return dataclasses.replace(before, layers=layers)
    around: dict[str, LayerTrial] = {layer.value: LayerTrial(True, f"made by {path}") for layer in outer}
    if Layer.USER_NAMESPACE not in made:
        around[Layer.USER_NAMESPACE.value] = LayerTrial(True, f"not needed: {path} is setuid")
    else:
        around[Layer.USER_NAMESPACE.value] = LayerTrial(True, f"made by {path}")
    found: dict[str, LayerTrial] = {**around, **report.layers}
    in_order: dict[str, LayerTrial] = {layer.value: found[layer.value] for layer in Layer if layer.value in found}
    return dataclasses.replace(report, layers=in_order, outer=path)


def _run_in_bwrap(
    path: str, order: ConfinementSpec, said: IO[bytes], complaints: IO[bytes]
) -> tuple[TrialReport, frozenset[Layer]]:
    around = dataclasses.replace(order, view=dataclasses.replace(order.view, binds=runtime_view.runtime_binds()))
    process, made = bwrap.start(
        path,
        around,
        [sys.executable, "-I", "-m", "wan_compat.sandbox.trial", json.dumps(to_wire(order))],
        env={"LC_ALL": "C.UTF-8"},
        pass_fds=(),
        stdout=said.fileno(),
        stderr=complaints.fileno(),
    )
    try:
        process.wait(TIMEOUT_S)
        said.seek(0)
        return _report_from_wire(json.loads(said.read())), made
    except subprocess.TimeoutExpired as error:
        raise failed(bwrap.NAME, f"{path}: the trial took more than {TIMEOUT_S:g} s", bwrap_remedy()) from error
    except (ValueError, TypeError, KeyError) as error:
        raise failed(bwrap.NAME, f"{path} ended with {process.returncode}", bwrap_remedy()) from error
    finally:
        process.kill()
        process.wait()


def _report_from_wire(data: dict[str, Any]) -> TrialReport:
    return TrialReport(
        **{
            **data,
            "layers": {name: LayerTrial(**layer) for name, layer in data["layers"].items()},
            "entered": tuple(data["entered"]),
            "not_denied": tuple(data["not_denied"]),
            "probes": tuple(selftest.ProbeResult(**{**p, "layers": tuple(p["layers"])}) for p in data["probes"]),
        }
    )


# ---- in the subprocess ---------------------------------------------------------------------------------------------


def main(order: str) -> None:
    """Carry the trial out and print its report. Runs in the subprocess, which has one thread."""
    from wan_compat.sandbox.spec import from_wire

    become_subreaper()
    spec = from_wire(json.loads(order))
    spec = dataclasses.replace(spec, view=dataclasses.replace(spec.view, binds=runtime_view.runtime_binds()))
    layers = dict.fromkeys((layer.value for layer in Layer if layer in spec.layers), LayerTrial(True))
    open_doors = {probe.name for probe in selftest.run_outer_probes(spec.outer) if not probe.denied}
    try:
        result = _enter_and_probe(spec)
    except SandboxEntryFailed as error:
        layers = {layer.value: _try_layer(spec, layer) for layer in Layer if layer in spec.layers}
        usable = frozenset(layer for layer in spec.layers if layers[layer.value].available)
        if usable == spec.layers:  # each alone but not together: say what the whole said
            layers[str(error.details.get("layer"))] = LayerTrial(False, error.message, error.hint or "")
            usable -= {Layer(layer) for layer, trial in layers.items() if not trial.available and layer in list(Layer)}
        spec = _with_layers(spec, usable)
        try:
            result = _enter_and_probe(spec)
        except SandboxEntryFailed as second:
            print(json.dumps(to_wire_report(TrialReport(layers, error=second.message))))
            return
    entry, probes = result
    denied = {probe.name for probe in probes if probe.denied}
    expected = selftest.expected_denied(entry.layers) | selftest.expected_sealed(entry.layers)
    report = TrialReport(
        layers=layers,
        entered=entry.layers,
        probes=probes,
        not_denied=tuple(sorted(expected - denied | open_doors)),
        flagrant_calls_kill=Layer.SECCOMP in spec.layers and _flagrant_calls_kill(spec),
        landlock_abi=entry.landlock_abi,
        entry_s=entry.timings_s["total"],
    )
    print(json.dumps(to_wire_report(report)))


def to_wire_report(report: TrialReport) -> dict[str, Any]:
    """Return the plain form of a report, for JSON."""
    return dataclasses.asdict(report)


def _enter_and_probe(spec: ConfinementSpec) -> tuple[EntryReport, tuple[selftest.ProbeResult, ...]]:
    reader, writer = os.pipe()

    def body(report: EntryReport) -> None:
        probes = selftest.run_probes((writer,))
        if Layer.SECCOMP in spec.layers:
            seccomp.seal()
            probes += selftest.run_sealed_probes()
        os.write(writer, json.dumps([dataclasses.asdict(probe) for probe in probes]).encode())

    try:
        entry, status = _run(spec, body, (writer,))
        os.close(writer)
        writer = -1
        said = os.read(reader, 1 << 16)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if status != 0 or not said:
        raise SandboxEntryFailed(
            f"the confined process ended with {_end(status)}", details={"layer": "launch", "errno": None}
        )
    probes = tuple(selftest.ProbeResult(**{**p, "layers": tuple(p["layers"])}) for p in json.loads(said))
    return entry, probes


def _try_layer(spec: ConfinementSpec, layer: Layer) -> LayerTrial:
    """Enter `layer` with what it cannot do without."""
    needed = {layer, Layer.CREDENTIALS}
    if layer in (Layer.LANDLOCK, Layer.SECCOMP):
        needed |= {Layer.NO_NEW_PRIVS}
    if layer is Layer.VIEW:
        needed |= {Layer.MOUNT_NAMESPACE}
    if needed & NAMESPACE_LAYERS and Layer.USER_NAMESPACE in spec.layers:
        needed |= {Layer.USER_NAMESPACE}
    alone = _with_layers(spec, frozenset(needed))
    if Layer.VIEW not in needed:  # whether the interpreter can be read in place is another question
        alone = dataclasses.replace(alone, view=dataclasses.replace(alone.view, binds=()))
    try:
        _run(alone, lambda report: None, ())
    except SandboxEntryFailed as error:
        return LayerTrial(False, error.message, error.hint or "")
    return LayerTrial(True)


def _with_layers(spec: ConfinementSpec, layers: frozenset[Layer]) -> ConfinementSpec:
    return dataclasses.replace(spec, layers=layers, cgroup_dirs=spec.cgroup_dirs if Layer.CGROUP in layers else ())


def _flagrant_calls_kill(spec: ConfinementSpec) -> bool:
    """Whether a call that only an attacker makes ends the process with SIGSYS."""
    status = _run(spec, lambda report: print(libc.call("ptrace", 0, 0, 0, 0)), ())[1]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS


def _run(
    spec: ConfinementSpec, body: Callable[[EntryReport], None], keep_fds: tuple[int, ...]
) -> tuple[EntryReport, int]:
    launched = launch(spec, body, keep_fds=keep_fds, output_fd=2, timeout_s=TIMEOUT_S / 2)
    try:
        return launched.report, os.waitpid(launched.pid, 0)[1]
    finally:
        with contextlib.suppress(OSError):
            os.close(launched.pidfd)


def _end(status: int) -> str:
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"


if __name__ == "__main__":
    main(sys.argv[1])
