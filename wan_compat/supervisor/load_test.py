"""Does a model load, and does it generate? What `test-load` does, in a worker like any other.

    decide -> load -> ( generate the smallest clip, some times over -> judge -> compare with earlier days )

The clip's media are made up. What ends loading or generating ends this, with its own code; what the clips show is a
verdict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wan_compat.policies.limits import memory_limit
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.performance import Comparison
from wan_compat.policies.pipelines import Way, ways_of
from wan_compat.policies.smoke_request import PROMPT, SEED, SmokeRequest, smoke_request
from wan_compat.protocol.errors import StateCorrupt, StateUnsafe, WanCompatError
from wan_compat.protocol.results import VideoGenerationResult
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.model_choice import choose_model
from wan_compat.supervisor.model_handle import ModelHandle
from wan_compat.supervisor.model_parts import parts_of
from wan_compat.supervisor.performance_monitor import PerformanceMonitor, slower
from wan_compat.supervisor.smoke_media import smoke_media
from wan_compat.supervisor.smoke_test import Examination, SmokeTestRunner

if TYPE_CHECKING:
    from wan_compat.supervisor.client import Job, Supervisor

DEFAULT_RUNS = 3


@dataclasses.dataclass(frozen=True)
class LoadTestReport:
    """`result` is that of loading, or of the first clip with the timings of loading; `examination` and `comparison` are
    None where nothing was generated, or no history could be kept."""

    result: VideoGenerationResult
    examination: Examination | None = None
    comparison: Comparison | None = None

    @property
    def problems(self) -> list[str]:
        return list(self.examination.smoke.errors) if self.examination is not None else []

    @property
    def leaks(self) -> bool:
        return self.examination is not None and self.examination.memory is not None and self.examination.memory.leaks

    @property
    def verdict(self) -> str:
        """`loads`, `generates`, `leaks` (it generates, and grows) or `fails`."""
        if self.examination is None:
            return "loads"
        if not self.problems:
            return "generates"
        return "leaks" if self.leaks and len(self.problems) == 1 else "fails"

    def to_json(self) -> dict[str, Any]:
        """Return the `test-load` document: the fields of a result, and what was found out."""
        found = self.examination
        document = self.result.to_json()
        parts = {
            "smoke_test": found.smoke if found else None,
            "format_validation": found.format if found else None,
            "memory_test": found.memory if found else None,
            "performance": found.performance if found else None,
            "comparison": self.comparison,
        }
        plain = {name: dataclasses.asdict(part) if part is not None else None for name, part in parts.items()}
        return document | {"success": not self.problems, "verdict": self.verdict} | plain


def load_and_test(
    supervisor: Supervisor,
    model: str,
    *,
    smoke: bool,
    runs: int = DEFAULT_RUNS,
    monitor: PerformanceMonitor | None = None,
    follow: Callable[[Job], VideoGenerationResult] | None = None,
    **fields: Any,
) -> LoadTestReport:
    """Load a model in a worker and, with `smoke`, generate a minimal clip `runs` times.

    Args:
        monitor: Keeps the history; None is this user's.
        follow: As for ModelHandle.
        fields: Of the GenerationRequest: `mode`, `task`, `components`, `memory_limit_bytes`, ...

    Raises:
        WanCompatError: Whatever refused the model, or ended loading or generating, with its code.
    """
    clip = smoke_request(decided(model, **fields))
    with smoke_media(clip.media, clip.width, clip.height, clip.media_frames) as media:
        handle = ModelHandle(supervisor, model, follow=follow, **{**fields, **clip_fields(clip), **media})
        loaded = handle.load()
        if not smoke:
            return LoadTestReport(loaded)
        found = SmokeTestRunner(parameters=clip_fields(clip)).examine(_CountedOnce(handle), runs=runs)
    if isinstance(found.error, WanCompatError):
        raise found.error
    first = found.runs[0].result
    assert first is not None  # a handle's generate gives one, and an error that is not ours cannot come from it
    quickest = min(found.runs[1:] or found.runs, key=lambda run: run.seconds).result
    assert quickest is not None
    comparison, remark = _compared(quickest, monitor or PerformanceMonitor())
    if comparison is not None and found.performance is not None:
        performance = dataclasses.replace(
            found.performance, baseline=comparison.baseline, regression=comparison.slower_by
        )
        found = dataclasses.replace(found, performance=performance)
    timings = dataclasses.replace(
        first.timings,
        worker_start_s=loaded.timings.worker_start_s,
        load_s=loaded.timings.load_s,
        total_s=loaded.timings.total_s + first.timings.total_s,
    )
    warnings = [*loaded.warnings, *first.warnings, *found.smoke.warnings, *([remark] if remark else [])]
    result = dataclasses.replace(
        first,
        timings=timings,
        errors=list(found.smoke.errors),
        warnings=list(dict.fromkeys(warnings)),
        memory_used=found.smoke.memory_peak,
        recovery=[*loaded.recovery, *first.recovery],
    )
    return LoadTestReport(result, found, comparison)


class _CountedOnce:
    """Counts memory in the first run only: counting slows, and the later ones are timed."""

    def __init__(self, handle: ModelHandle) -> None:
        self._handle, self._counted = handle, False

    def generate(self, prompt: str, **fields: Any) -> VideoGenerationResult:
        result = self._handle.generate(prompt, **fields, count_memory=not self._counted)
        self._counted = True
        return result


def decided(model: str, **fields: Any) -> ModelDecision:
    """Return what a model is, for the task that `fields` name or its usual one: what has to be made up follows from it.

    Raises:
        WanCompatError: Whatever refuses the model.
    """
    asked = GenerationRequest(**{**fields, "model": model, "prompt": PROMPT})
    host = read_host()
    decision = choose_model(
        asked.model,
        asked.mode,
        threads=host.cpu_count,
        memory_limit_bytes=memory_limit(asked.memory_limit_bytes, host),
        restricted=asked.restricted,
        parts=parts_of(asked),
        recover=asked.recover,
    )
    return dataclasses.replace(decision, way=_way(decision, asked))


def _way(decision: ModelDecision, asked: GenerationRequest) -> Way | None:
    usual = decision.way
    if usual is None or asked.task is None:
        return usual
    # A task that the model does not do is refused by the job, in its own words.
    return next((way for way in ways_of(usual.weights) if way.task == asked.task.value), usual)


def clip_fields(clip: SmokeRequest) -> dict[str, Any]:
    """Return the fields of a request for such a clip; its media come from `smoke_media`."""
    return {
        "seed": SEED,
        "height": clip.height,
        "width": clip.width,
        "num_frames": clip.num_frames,
        "num_inference_steps": clip.num_inference_steps,
    }


def _compared(result: VideoGenerationResult, monitor: PerformanceMonitor) -> tuple[Comparison | None, str | None]:
    try:
        comparison = monitor.record(result)
    except (StateUnsafe, StateCorrupt, OSError) as error:
        return None, f"timings could not be recorded: {error}"
    return comparison, slower(comparison)
