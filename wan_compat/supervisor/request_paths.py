"""Paths in a request, made absolute where they were written: a supervisor elsewhere has another working folder."""

from __future__ import annotations

import os
from typing import TypeVar

from wan_compat.protocol.conversion import ConversionRequest
from wan_compat.protocol.errors import WanCompatError
from wan_compat.protocol.values import GenerationRequest

R = TypeVar("R", GenerationRequest, ConversionRequest)

# Every field of a request that is a path, but `model`, which may be a hub id as well.
_GENERATION = (
    *("output", "worker_log", "audio", "preview", "image", "last_image", "video", "mask"),
    *("pose_video", "face_video", "background_video"),
    *("components", "transformer", "transformer_2", "vae", "text_encoder", "image_encoder"),
)
_CONVERSION = ("output", "worker_log")


def with_absolute_paths(request: R) -> R:
    """Return the request with every path absolute, and a model of the local cache as the folder it lies in."""
    changes: dict[str, object] = {"model": _model(request.model)}
    for name in _names(request):
        value = getattr(request, name)
        if value is not None:
            changes[name] = os.path.abspath(value)
    if isinstance(request, GenerationRequest):
        changes["references"] = tuple(os.path.abspath(path) for path in request.references)
        changes["loras"] = tuple(lora.model_copy(update={"path": os.path.abspath(lora.path)}) for lora in request.loras)
    return request.model_copy(update=changes)


def relative_path_in(request: GenerationRequest | ConversionRequest) -> str | None:
    """Return a path of the request that is not absolute, in the words of its field; None if there is none."""
    paths = [(name, getattr(request, name)) for name in ("model", *_names(request))]
    if isinstance(request, GenerationRequest):
        paths += [("references", path) for path in request.references]
        paths += [("loras", lora.path) for lora in request.loras]
    for name, path in paths:
        if path is not None and not os.path.isabs(path):
            return f"{name} {path!r}"
    return None


def _names(request: GenerationRequest | ConversionRequest) -> tuple[str, ...]:
    return _GENERATION if isinstance(request, GenerationRequest) else _CONVERSION


def _model(model: str) -> str:
    from wan_compat.supervisor.inspection.locate import locate

    try:
        return locate(model).root
    except WanCompatError:
        return os.path.abspath(model)  # the job says what is wrong with it
