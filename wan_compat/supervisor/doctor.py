"""What this machine offers to wan-compat: found by trying, told with a reason and a remedy for every lack.

The sandbox is entered for real in a process made for it (`sandbox/trial.py`), ffmpeg is run, a cgroup is made and
removed. Versions come from package metadata: nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
from typing import Any

from wan_compat.policies.confinement import decide_tier
from wan_compat.policies.gpus import CudaFacts, remarks, why_unusable
from wan_compat.policies.policy import Policy
from wan_compat.protocol.errors import EnvironmentLacks, FfmpegMissing, SandboxUnavailable
from wan_compat.sandbox import cgroup, trial
from wan_compat.sandbox.spec import Layer, Tier
from wan_compat.supervisor import gpus as machine_gpus
from wan_compat.supervisor.ffmpeg import find_ffmpeg
from wan_compat.supervisor.hardware_encoders import try_hardware_encoders
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.nvml import Nvml
from wan_compat.supervisor.state_health import StateHealth, examine_state

REPORT_SCHEMA_VERSION = 1

WORKER_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "sentencepiece", "ftfy", "pillow")
OWN_PACKAGES = ("wan-compat", "pydantic", "pyzmq", "msgpack", "psutil", "numpy", "imageio-ffmpeg")

# The encoders that a video of ours could be made with; ffmpeg knows hundreds of others.
VIDEO_ENCODERS = ("libx264", "libx265", "libsvtav1", "libaom-av1", "libvpx-vp9", "ffv1", "prores_ks", "gif", "libwebp")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why `generate` cannot run here as it stands. `exit_code` is that of the error it would raise."""

    message: str
    remedy: str
    exit_code: int


@dataclasses.dataclass(frozen=True)
class DoctorReport:
    """The machine as found. `layers`: name to available, reason, remedy; `versions`: None where not installed."""

    tier: str
    layers: dict[str, dict[str, Any]]
    sandbox: dict[str, Any]
    memory_cap: dict[str, Any]
    ffmpeg: dict[str, Any]
    gpus: list[dict[str, Any]]
    versions: dict[str, str | None]
    audit: StateHealth
    problems: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the `doctor` document."""
        document = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        problems = [dataclasses.asdict(problem) for problem in self.problems]
        audit = self.audit.to_json()
        return {"schema_version": REPORT_SCHEMA_VERSION, **document, "audit": audit, "problems": problems}


def examine() -> DoctorReport:
    """Try everything and report. Takes about a second, most of it the trial; raises nothing for what is missing."""
    tried = trial.run_trial()
    tier = decide_tier(tried.entered).tier if tried.holds else Tier.E
    versions = _versions()
    ffmpeg = _examine_ffmpeg()
    return DoctorReport(
        tier=tier.value,
        layers={name: dataclasses.asdict(layer) for name, layer in tried.layers.items()},
        sandbox={
            "holds": tried.holds,
            "entered": list(tried.entered),
            "probes": {probe.name: probe.denied for probe in tried.probes},
            "not_denied": list(tried.not_denied),
            "flagrant_calls_kill": tried.flagrant_calls_kill,
            "landlock_abi": tried.landlock_abi,
            "entry_s": tried.entry_s,
            "error": tried.error,
            "outer": tried.outer or None,
        },
        memory_cap=_examine_memory_cap(),
        ffmpeg=ffmpeg,
        gpus=examine_gpus(),
        versions=versions,
        audit=examine_state(),
        problems=_problems(tried, tier, ffmpeg, versions),
    )


def exit_code(report: DoctorReport) -> int:
    """Return 0 when `generate` can run here, else the code of the most important problem."""
    return report.problems[0].exit_code if report.problems else 0


def describe(report: DoctorReport, *, verbose: bool) -> str:
    """Return the report for a person: the verdict first, then what was found; everything with `verbose`."""
    lines = ["Ready." if not report.problems else "Not ready:"]
    for number, problem in enumerate(report.problems, 1):
        lines += [f"  {number}. {problem.message}", f"     -> {problem.remedy}"]
    available = [name for name, layer in report.layers.items() if layer["available"]]
    entry_ms = report.sandbox["entry_s"] * 1000
    lines += [
        "",
        f"Sandbox       tier {report.tier}: {len(available)} of {len(report.layers)} layers, {entry_ms:.0f} ms"
        + (f"; namespaces and view are made by {report.sandbox['outer']}" if report.sandbox["outer"] else ""),
    ]
    lines += [f"  yes  {name}" for name in available if verbose]
    # One cause often takes several layers away: its remedy is told once.
    for remedy in dict.fromkeys(layer["remedy"] for layer in report.layers.values() if not layer["available"]):
        lost = {
            name: layer
            for name, layer in report.layers.items()
            if (layer["remedy"], layer["available"]) == (remedy, False)
        }
        lines.append(f"  no   {', '.join(lost)}: {next(iter(lost.values()))['reason']}")
        lines += [f"       -> {remedy}"] if remedy else []
    if verbose:
        lines += [f"  {'denied' if denied else 'OPEN  '}  {name}" for name, denied in report.sandbox["probes"].items()]
    cap = report.memory_cap
    lines.append(
        f"Memory cap    {cap['mechanism']}, enforced by {cap['enforced_by']}; "
        f"{_gigabytes(cap['available_bytes'])} of {_gigabytes(cap['total_bytes'])} free"
    )
    ffmpeg = report.ffmpeg
    lines.append(
        f"ffmpeg        {ffmpeg['version']}: {', '.join(ffmpeg['encoders'])}"
        if ffmpeg["available"]
        else f"ffmpeg        none: {ffmpeg['reason']}"
    )
    if verbose:
        lines += [
            f"  not offered  {name}: {reason or 'encodes, but videos are written without devices'}"
            for name, reason in ffmpeg["hardware"].items()
        ]
    lines += describe_gpus(report.gpus)
    audit = report.audit.describe()
    lines += [f"Audit log     {audit[0]}", *(f"  {line}" for line in audit[1:])]
    names = report.versions if verbose else ("wan-compat", "python", *WORKER_PACKAGES[:3])
    lines.append("Versions      " + ", ".join(f"{name} {report.versions[name] or 'missing'}" for name in names))
    return "\n".join(lines)


def describe_gpus(gpus: list[dict[str, Any]]) -> list[str]:
    """Return the lines about GPUs."""
    if not gpus:
        return ["GPU           none found: workers use the CPU"]
    lines = []
    for gpu in gpus:
        free, total = _gigabytes(gpu["memory_free_bytes"]), _gigabytes(gpu["memory_total_bytes"])
        lines.append(f"GPU           {gpu['name']}, {free} of {total} free")
        lines += [f"  not used: {gpu['why_not']}"] if gpu.get("why_not") else []
        lines += [f"  {remark}" for remark in gpu.get("remarks", ())]
    told = gpus[0]
    if told.get("driver"):
        lines.append(
            f"  driver {told['driver']}, CUDA {told['driver_cuda'] or 'unknown'}; "
            f"torch has {told['torch_cuda'] or 'none'}"
        )
    return lines


def _problems(
    tried: trial.TrialReport, tier: Tier, ffmpeg: dict[str, Any], versions: dict[str, str | None]
) -> tuple[Problem, ...]:
    problems = []
    wanted = Policy().min_tier
    if not tier.satisfies(wanted):
        missing = [name for name, layer in tried.layers.items() if not layer.available and name != Layer.CGROUP]
        remedy = next((tried.layers[name].remedy for name in missing if tried.layers[name].remedy), "")
        if tried.error and not remedy:
            message, remedy = f"the sandbox could not be tried: {tried.error}", "report this with the output of -v"
        elif tried.not_denied:
            message = f"the sandbox was entered but does not hold: {', '.join(tried.not_denied)} should be denied"
            remedy = "report this with the output of -v; nothing will be run here"
        else:
            missing = [name for name, layer in tried.layers.items() if not layer.available and name != Layer.CGROUP]
            message = f"tier {wanted.value} is wanted, this machine reaches {tier.value}: no {', '.join(missing)}"
            remedy = remedy or "see the layers below"
            if tier is Tier.C:
                remedy += "; or accept less with --min-tier C"
        problems.append(Problem(message, remedy, SandboxUnavailable.exit_code))
    absent = [name for name in WORKER_PACKAGES if versions[name] is None]
    if absent:
        problems.append(
            Problem(f"workers need {', '.join(absent)}", 'pip install "wan-compat[worker]"', EnvironmentLacks.exit_code)
        )
    if not ffmpeg["available"]:
        problems.append(Problem(ffmpeg["reason"], ffmpeg["remedy"], FfmpegMissing.exit_code))
    return tuple(problems)


def _examine_memory_cap() -> dict[str, Any]:
    host = read_host()
    support = cgroup.detect()
    return {
        "mechanism": f"cgroup {support.version}" if support.available else "RLIMIT_DATA and polling",
        "enforced_by": "the kernel"
        if support.available
        else "the kernel for private memory, the supervisor for the rest",
        "reason": support.reason,
        "remedy": support.remedy,
        "available_bytes": host.memory_available_bytes,
        "total_bytes": host.memory_total_bytes,
    }


def _examine_ffmpeg() -> dict[str, Any]:
    try:
        found = find_ffmpeg()
    except FfmpegMissing as error:
        return {
            "available": False,
            "path": None,
            "version": None,
            "encoders": [],
            "hardware": {},
            "reason": error.message,
            "remedy": error.hint or "",
        }
    return {
        "available": True,
        "path": found.path,
        "version": found.version,
        "encoders": [name for name in VIDEO_ENCODERS if name in found.encoders],
        "hardware": try_hardware_encoders(found),
        "reason": "",
        "remedy": "",
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "python": platform.python_version(),
        "kernel": os.uname().release,
        "machine": os.uname().machine,
    }
    for name in (*OWN_PACKAGES, *WORKER_PACKAGES):
        versions[name] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def examine_gpus() -> list[dict[str, Any]]:
    """As `read_gpus`, with whether workers compute on each, why not, and what else is to be known."""
    known = {gpu["index"]: gpu for gpu in read_gpus()}
    found, driver_cuda = machine_gpus.read_nvidia()
    cuda = CudaFacts(machine_gpus.torch_cuda(), driver_cuda)
    return [
        {
            **known[gpu.index],
            "why_not": why_unusable(gpu, cuda, machine_gpus.nodes_of(gpu)),
            "remarks": list(remarks(gpu)),
            "driver": machine_gpus.driver_version(),
            "driver_cuda": _version(cuda.driver),
            "torch_cuda": _version(cuda.torch),
        }
        for gpu in found
        if gpu.index in known
    ]


def _version(version: tuple[int, int] | None) -> str | None:
    return None if version is None else f"{version[0]}.{version[1]}"


def read_gpus() -> list[dict[str, Any]]:
    """Return the NVIDIA GPUs that the driver knows; an empty list without a driver."""
    try:
        with Nvml() as nvml:
            return [dataclasses.asdict(gpu) for gpu in nvml.gpus()]
    except OSError:
        return []
