"""One generation by a pipeline of the repository's own: called as a Wan pipeline is, its frames taken from its answer.

steps     counted at `scheduler.step`, since not every pipeline calls back
decode    from the last step to the last published frame; the frames come as a whole
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from wan_compat.protocol.errors import GenerationFailed, ModelNotCompatible
from wan_compat.protocol.messages import Generate, Generated, Progress
from wan_compat.workers.arguments import arguments
from wan_compat.workers.cancellation import Cancellation
from wan_compat.workers.frames import FrameWriter
from wan_compat.workers.generation import Run
from wan_compat.workers.loader import LoadedModel
from wan_compat.workers.media import NO_MEDIA, Media
from wan_compat.workers.own_pipeline import ANYTHING
from wan_compat.workers.repository_code import cannot_import

# Under which names a modular pipeline leaves its video; those of diffusers' own blocks first.
_VIDEO_NAMES = ("videos", "frames", "video")
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
    if ANYTHING not in model.call_arguments:
        given = {name: value for name, value in given.items() if name in model.call_arguments}
    if "prompt" not in given:
        raise ModelNotCompatible(f"{model.spec.pipeline_class} takes no prompt: it is no text-to-video pipeline")
    run = Run(pipeline, order.job, cancellation, report)
    names = [item.name for item in model.spec.components if item.name.startswith("transformer")]
    transformers = [part for name in names if isinstance(part := getattr(pipeline, name, None), torch.nn.Module)]
    with torch.no_grad(), run.watching(transformers), _counting_steps(pipeline, run, order.job, report):
        try:
            output = pipeline(**given)
        except ImportError as error:  # code may import late
            assert model.spec.code is not None
            raise cannot_import(model.spec.code, error) from error
    total = order.params.frames.num_frames
    for picture in pictures(output):
        cancellation.check()
        writer.publish_picture(picture)
        report(Progress(job=order.job, phase="decode", step=writer.published, total=total))
    writer.finish()
    return run.finished(model.spec.device)


@contextlib.contextmanager
def _counting_steps(pipeline: Any, run: Run, job: int, report: Callable[[Progress], None]) -> Iterator[None]:
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
            total = max(done, min(MAX_STEPS, 0 if timesteps is None else len(timesteps)))
            report(Progress(job=job, phase="denoise", step=done, total=total))
        return result

    scheduler.step = counted  # type: ignore[union-attr]
    try:
        yield
    finally:
        del scheduler.step  # type: ignore[union-attr]


def pictures(output: Any) -> Iterator[torch.Tensor]:
    """Yield the frames of the first video that a pipeline returned, each (3, height, width), uint8 or floating point.

    Takes what diffusers' video pipelines return as "pt", "np" and "pil": an object with `frames`, a tuple, or the state
    of a modular pipeline, with a batch of videos, or one video, inside.
    """
    video = _video(output)
    while isinstance(video, list | tuple) and len(video) > 0 and isinstance(video[0], list | tuple):
        video = video[0]
    for frame in _frames(video):
        picture = _tensor(frame)
        if picture.ndim == 3 and picture.shape[-1] == 3 and picture.shape[0] != 3:
            picture = picture.permute(2, 0, 1)
        yield picture


def _video(output: Any) -> Any:
    values = getattr(output, "values", None)
    if isinstance(values, Mapping):  # the state of a modular pipeline
        output = values
    if isinstance(output, Mapping):
        for name in _VIDEO_NAMES:
            if output.get(name) is not None:
                return output[name]
        raise GenerationFailed(f"the pipeline left no video: none of {', '.join(_VIDEO_NAMES)}")
    if hasattr(output, "frames"):
        return output.frames
    return output[0] if isinstance(output, tuple) and output else output


def _frames(video: Any) -> Iterator[Any]:
    if isinstance(video, list | tuple):
        first = _tensor(video[0]) if video else None
        if first is not None and first.ndim == 4:  # a batch of videos
            yield from first
        else:
            yield from video
        return
    tensor = _tensor(video)
    if tensor.ndim == 5:
        tensor = tensor[0]
    if tensor.ndim != 4:
        raise GenerationFailed(f"the pipeline returned an array of shape {tuple(tensor.shape)}, which is no video")
    yield from tensor


def _tensor(value: Any) -> torch.Tensor:
    import numpy as np

    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if callable(convert := getattr(value, "convert", None)):  # a PIL image
        return torch.from_numpy(np.array(convert("RGB")))
    raise GenerationFailed(f"the pipeline returned {type(value).__name__}, which is no picture")
