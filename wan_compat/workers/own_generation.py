"""One generation by a pipeline of the repository's own, or of modular blocks: called as a Wan pipeline is, its frames
taken from its answer.

steps     counted at `scheduler.step`, since not every pipeline calls back
decode    from the last step to the last published frame; the frames come as a whole
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from wan_compat.protocol.errors import InvalidRequest, ModelNotCompatible
from wan_compat.protocol.messages import Generate, Generated, Progress
from wan_compat.workers.arguments import MEDIA_NAMES, arguments
from wan_compat.workers.call_fitting import fit_call, lacking
from wan_compat.workers.cancellation import Cancellation
from wan_compat.workers.families import family_of
from wan_compat.workers.frames import FrameWriter
from wan_compat.workers.generation import Run, publish_returned
from wan_compat.workers.loader import LoadedModel
from wan_compat.workers.media import NO_MEDIA, Media
from wan_compat.workers.optimizations import caching
from wan_compat.workers.own_pipeline import ANYTHING, guide, wanted_arguments
from wan_compat.workers.phase_memory import PhaseMemory
from wan_compat.workers.repository_code import cannot_import

MAX_STEPS = 10_000  # as many as the protocol takes


def generate_own(
    model: LoadedModel,
    order: Generate,
    writer: FrameWriter,
    cancellation: Cancellation,
    report: Callable[[Progress], None],
    media: Media = NO_MEDIA,
) -> Generated:
    """Run one generation and publish its frames. Arguments and errors as in generation.py.

    Raises:
        ModelNotCompatible: The pipeline cannot be called with what a Wan pipeline takes.
        InvalidRequest: It takes no picture, or no option, that was given.
        GenerationFailed, UnusableFrames: What it returned are no frames, or not those that were agreed.
    """
    pipeline = model.pipeline
    given = arguments(model, order.params, media)
    fitted: tuple[str, ...] = ()
    if model.spec.code is not None:
        taken, wanted = model.call_arguments, wanted_arguments(pipeline)
        given, fitted = fit_call(given, taken, wanted, order.params, model.spec.device)
    elif ANYTHING not in model.call_arguments:
        given = {name: value for name, value in given.items() if name in model.call_arguments}
    if lacking(given, ("prompt",)):
        raise ModelNotCompatible(f"{model.spec.pipeline_class} takes no prompt: it is no text-to-video pipeline")
    if model.spec.code is not None:
        _require(model.spec.pipeline_class, wanted_arguments(pipeline), given)
    family = family_of(model.spec.pipeline_class) if model.spec.code is None else None
    steps = family.steps(order.params, pipeline) if family is not None else None
    if model.spec.code is None:
        guide(pipeline, order.params.guidance_scale, order.params.guidance_scale_2)
    run = Run(pipeline, order.job, cancellation, report)
    names = [item.name for item in model.spec.components if item.name.startswith("transformer")]
    transformers = [part for name in names if isinstance(part := getattr(pipeline, name, None), torch.nn.Module)]
    memory = PhaseMemory(pipeline, model.spec.device, count=order.count_memory)
    with (
        torch.no_grad(),
        caching(pipeline, model.spec.plan.cache, order.params.num_inference_steps) as cached,
        memory.counting(),
        run.watching(transformers),
        _counting_steps(pipeline, run, order.job, report, steps),
    ):
        try:
            output = pipeline(**given)
        except ImportError as error:  # code may import late
            if model.spec.code is None:
                raise
            raise cannot_import(model.spec.code, error) from error
    trimmed = family is not None and family.trimmed
    of_job = slice(0, order.params.frames.num_frames if trimmed else None)
    publish_returned(output, of_job, order, writer, cancellation, report)
    writer.finish()
    return run.finished(model.spec.device).model_copy(
        update={"applied": cached, "peak_allocated_bytes": memory.peaks, "fitted": fitted}
    )


def _require(name: str, wanted: Iterable[str], given: Mapping[str, Any]) -> None:
    """Say what a call of the repository's code would lack, before it fails in words of its own."""
    missing = [argument for argument in wanted if argument not in given]
    roles = {argument: role for role, (argument, _) in MEDIA_NAMES.items()}
    if pictures := [f"--{roles[argument].replace('_', '-')}" for argument in missing if argument in roles]:
        raise InvalidRequest(f"{name} needs {', '.join(pictures)}", hint="docs/tasks.md says how pictures are given")
    if missing:
        raise ModelNotCompatible(f"{name} wants {', '.join(missing)}, which no job has")


@contextlib.contextmanager
def _counting_steps(
    pipeline: Any, run: Run, job: int, report: Callable[[Progress], None], steps: int | None
) -> Iterator[None]:
    scheduler = getattr(pipeline, "scheduler", None)
    step = getattr(scheduler, "step", None)
    if not callable(step):
        yield
        return
    done = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal done
        result = step(*args, **options)
        run.denoised()
        done += 1
        if done <= MAX_STEPS:
            timesteps = getattr(scheduler, "timesteps", None)
            total = max(done, min(MAX_STEPS, steps or (0 if timesteps is None else len(timesteps))))
            report(Progress(job=job, phase="denoise", step=done, total=total))
        return result

    scheduler.step = counted  # type: ignore[union-attr]
    try:
        yield
    finally:
        del scheduler.step  # type: ignore[union-attr]
