"""How a video was made, put together for the label inside it and for the sidecar beside it."""

from __future__ import annotations

import datetime
import hashlib
import os
from typing import Any

from wan_compat._version import __version__
from wan_compat.policies.encoding.labels import label as label_text
from wan_compat.policies.facts import FileFact
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.requests import ResolvedRequest
from wan_compat.protocol.errors import WanCompatError
from wan_compat.protocol.results import VideoGenerationResult
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor.hashing import FileIdentity, HashCache, HashRequest, hash_files

# Larger models are hashed on request only (`scan --hash`, `check --verify`); what that found is remembered, for here.
HASH_AT_ONCE_BYTES = 64 << 20

# What belongs to one run and not to the video; never taken from a sidecar.
NOT_REPEATED = frozenset((
    "model", "output", "overwrite", "worker_log", "preview", "timeout_s", "phase_timeouts", "memory_limit_bytes",
    "gpu_memory_limit_bytes", "device", "isolation", "mode", "restricted", "load_only", "count_memory",
    "preview_latents",
))  # fmt: skip

_TEXTS = frozenset(("prompt", "negative_prompt", "format", "codec", "quality", "metadata", "task"))


def label(request: GenerationRequest, model: ModelDecision, resolved: ResolvedRequest) -> str:
    """Return the text that goes into the file, at the level that the request asks for."""
    params = resolved.params
    return label_text(
        request.metadata,
        version=__version__,
        model=model.repository or os.path.basename(os.path.abspath(request.model)),
        revision=model.revision,
        parameters=params.model_dump(exclude={"frames"}) | params.frames.model_dump() | {"fps": resolved.fps},
    )


def document(
    request: GenerationRequest,
    model: ModelDecision,
    resolved: ResolvedRequest,
    result: VideoGenerationResult,
    number: int | None = None,
) -> dict[str, Any]:
    """Return the content of the sidecar: see `sidecar.py`.

    Args:
        request: What makes this video again; of several that were made at once, all of them.
        number: Of the video among those, from 0.
    """
    params = resolved.params
    made_so = {
        "seed": params.seed if request.seed is None else request.seed,
        "num_inference_steps": params.num_inference_steps,
        "guidance_scale": params.guidance_scale,
        "height": params.frames.height,
        "width": params.frames.width,
        "num_frames": params.frames.num_frames,
        "fps": resolved.fps,
    }
    if params.guidance_scale_2 is not None and request.guidance_scale_2 is not None:
        made_so["guidance_scale_2"] = params.guidance_scale_2
    asked = request.model_dump(mode="json", exclude_none=True, exclude=set(NOT_REPEATED), exclude_defaults=True)
    asked = {name: value if name in _TEXTS else absolute(value) for name, value in asked.items()}
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "generator": f"wan-compat {__version__}",
        "request": asked | made_so,
        **({} if number is None else {"at_once": {"video": number + 1, "of": request.num_videos}}),
        "mode": request.mode.value,
        "restricted": request.restricted,
        "model": {
            "path": absolute(request.model),
            "repository": model.repository,
            "revision": model.revision,
            "sha256": model_hash(model.admitted),
        },
        "result": result.to_json(),
    }


def absolute(value: Any) -> Any:
    """Return the absolute path where a text names something that is there, so that it is found from elsewhere too."""
    if isinstance(value, list):
        return [absolute(item) for item in value]
    if isinstance(value, dict):  # a LoRA
        return {name: absolute(item) for name, item in value.items()}
    return os.path.abspath(value) if isinstance(value, str) and os.path.exists(value) else value


def model_hash(files: tuple[FileFact, ...]) -> str | None:
    """Return one hash over all files of a model that were admitted: SHA-256 of the lines `SHA256  PATH`, sorted.

    None where that would mean to read many gigabytes now. A hash is right or absent, never of a part.
    """
    try:
        cache = HashCache()
        requests = {
            fact.path: HashRequest(fact.real_path, FileIdentity.of(os.stat(fact.real_path, follow_symlinks=False)))
            for fact in files
        }
        unknown = sum(each.identity.size for each in requests.values() if cache.get(each.identity) is None)
        if unknown > HASH_AT_ONCE_BYTES:
            return None
        found = hash_files(list({each.path: each for each in requests.values()}.values()), threads=1, cache=cache)
        cache.save()
    except (WanCompatError, OSError):
        return None
    lines = sorted(f"{found[each.path]}  {path}\n" for path, each in requests.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
