"""`PerformanceMonitor`: how long generations took on this machine, and which was slower than its like.

    performance.json   {"schema_version": 1, "runs": [...]}   in the user's state folder, 0600, the newest last

Runs are kept by what makes them comparable: model, plan, size, steps, machine, and whether the worker was warm. Neither
prompts nor outputs are kept. A history that is lost or damaged costs no more than its comparisons.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import platform
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wan_compat.policies.performance import Comparison, compare
from wan_compat.protocol.errors import StateCorrupt, StateUnsafe
from wan_compat.protocol.results import VideoGenerationResult
from wan_compat.supervisor.private_files import PrivateFolder, state_folder

FILE_NAME = "performance.json"
MAX_FILE_BYTES = 4 << 20
MAX_RUNS = 4000  # of all kinds together, the oldest are forgotten first
MAX_RUNS_OF_A_KIND = 32

Text = Annotated[str, Field(max_length=300)]
Duration = Annotated[float, Field(ge=0, le=1e9)]


class Run(BaseModel):
    """One generation. `kind` is a hash of what makes runs comparable; `seconds` are text encoding, denoising and
    decoding together."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    when: Text
    model: Text
    what: Text
    warm: bool
    seconds: Duration
    load_s: Duration
    seconds_per_step: Duration
    peak_bytes: int = Field(ge=0, le=1 << 60)
    versions: dict[Text, Text] = Field(default_factory=dict, max_length=8)


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = Field(ge=1, le=1)
    runs: list[Run] = Field(max_length=MAX_RUNS)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the history knows of one kind of runs, the newest last."""

    model: str
    what: str
    warm: bool
    runs: tuple[Run, ...]
    latest: Comparison


class PerformanceMonitor:
    """Keeps the history, and compares with it.

    Args:
        folder: None is this user's state folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or state_folder()

    def record(self, result: VideoGenerationResult) -> Comparison:
        """Add a finished generation, and compare it with the earlier ones of its kind.

        Raises:
            StateUnsafe, StateCorrupt: The history cannot be believed, or not be written.
        """
        run = run_of(result)
        with PrivateFolder(self._folder, create=True) as opened, opened.lock(FILE_NAME):
            runs = self._read(opened)
            earlier = [known.seconds for known in runs if known.kind == run.kind]
            try:
                opened.replace(FILE_NAME, _bounded([*runs, run]))
            except OSError as error:
                raise StateUnsafe(
                    f"{self._folder / FILE_NAME} cannot be written: {error.strerror}", hint="free some space"
                ) from error
        return compare(run.seconds, earlier)

    def compare(self, result: VideoGenerationResult) -> Comparison:
        """Compare a generation with the history, and leave that as it is. Raises as `record`."""
        run = run_of(result)
        return compare(run.seconds, [known.seconds for known in self.history() if known.kind == run.kind])

    def history(self) -> list[Run]:
        """Return all runs, the newest last. Raises as `record`."""
        with PrivateFolder(self._folder) as opened:
            return self._read(opened)

    def kinds(self) -> list[Kind]:
        """Return the history by kind, what ran last first, with how the latest run of each compares to those before."""
        grouped: dict[str, list[Run]] = {}
        for run in self.history():
            # Out and in again: the order of the file is that of the runs, finer than what the clock tells apart.
            grouped[run.kind] = [*grouped.pop(run.kind, []), run]
        found = []
        for runs in reversed(grouped.values()):
            last = runs[-1]
            comparison = compare(last.seconds, [run.seconds for run in runs[:-1]])
            found.append(Kind(last.model, last.what, last.warm, tuple(runs), comparison))
        return found

    def _read(self, opened: PrivateFolder) -> list[Run]:
        raw = opened.read(FILE_NAME, MAX_FILE_BYTES)
        if raw is None:
            return []
        try:
            return _Document.model_validate_json(raw).runs
        except ValidationError as error:
            path = self._folder / FILE_NAME
            raise StateCorrupt(
                f"{path}, the history of timings, is damaged", hint=f"put it aside: mv {path} {path}.broken"
            ) from error


def run_of(result: VideoGenerationResult) -> Run:
    """Return what is kept of a generation."""
    params, timings = result.metadata.generation_params, result.timings
    steps = int(params.get("num_inference_steps") or 1)
    model = result.metadata.repository or os.path.realpath(result.metadata.model_path)
    size = "x".join(str(params.get(name)) for name in ("num_frames", "height", "width"))
    plan = result.metadata.plan or {}
    chosen = str(plan.get("name") or "as it is")
    what = f"{result.metadata.pipeline_class} {params.get('task', 't2v')} {size}, {steps} steps, {chosen}"
    warm = timings.load_s == 0
    # Of the machine: its name, since a state folder may be shared by several, and what its workers compute with.
    machine = (platform.node(), platform.machine(), len(os.sched_getaffinity(0)))
    guided = float(params.get("guidance_scale") or 0) > 1  # twice the work for each step
    # What has to be computed anew or not: with kept embeddings a run has no text to encode.
    applied = sorted(result.metadata.optimizations_applied)
    parts = (model, result.metadata.revision, what, warm, guided, applied, machine)
    return Run(
        kind=hashlib.sha256(repr(parts).encode("utf-8", "replace")).hexdigest()[:32],
        when=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        model=model[-300:],
        what=what[:300],
        warm=warm,
        seconds=timings.text_encode_s + timings.denoise_s + timings.decode_s,
        load_s=timings.load_s,
        seconds_per_step=timings.denoise_s / steps,
        peak_bytes=result.memory_used,
        versions={
            name: str(result.metadata.system_info[name])[:300]
            for name in ("wan_compat", "torch", "diffusers")
            if name in result.metadata.system_info
        },
    )


def note(result: VideoGenerationResult) -> str | None:
    """Record a generation and return a remark if it was slower than usual; a history that fails is remark enough."""
    try:
        comparison = PerformanceMonitor().record(result)
    except (StateUnsafe, StateCorrupt, OSError) as error:
        return f"timings could not be recorded: {error}"
    return slower(comparison)


def slower(comparison: Comparison) -> str | None:
    """Return the remark on a regression."""
    if not comparison.is_regression or comparison.baseline is None or comparison.slower_by is None:
        return None
    return (
        f"slower than usual: {comparison.seconds:.1f} s, against {comparison.baseline:.1f} s in the median of "
        f"{comparison.earlier} earlier runs (+{comparison.slower_by:.0%})"
    )


def _bounded(runs: list[Run]) -> bytes:
    """Return the file's content: the newest runs, of each kind not too many."""
    counts: dict[str, int] = {}
    kept: list[Run] = []
    for run in reversed(runs):
        counts[run.kind] = counts.get(run.kind, 0) + 1
        if counts[run.kind] <= MAX_RUNS_OF_A_KIND and len(kept) < MAX_RUNS:
            kept.append(run)
    while True:
        content = _Document(schema_version=1, runs=kept[::-1]).model_dump_json().encode("utf-8")
        if len(content) <= MAX_FILE_BYTES:
            return content
        kept = kept[: len(kept) // 2]
