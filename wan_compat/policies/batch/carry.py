"""What one item's recovery teaches the following items of the same model: start where that one ended.

A recovery tells its steps in words (`action`, of policies/recovery/ladders.py), as results and journals have them.
Those that a request can ask for by name from the start are carried on; the others, such as a new worker, are about one
moment. tests/policies/batch holds the table against the ladders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from wan_compat.protocol.values import GenerationRequest

_FIELDS: tuple[tuple[str, str, str | bool], ...] = (
    ("decode in tiles of ", "vae_tiling", True),
    ("decode the kept latents in tiles of ", "vae_tiling", True),
    ("leave the weights in their files", "offload", "group"),
    ("keep one model at a time on the GPU", "offload", "model"),
    ("keep single layers on the GPU", "offload", "group"),
    ("move one layer at a time", "offload", "sequential"),
    ("compute in bfloat16", "precision", "bfloat16"),
    ("compute in float32", "precision", "float32"),
    ("compute attention by plain matrix products", "attention_backend", "_native_math"),
)


def lesson(recovery: Iterable[Mapping[str, str]]) -> dict[str, str | bool]:
    """Return the fields with which a recovered job would have begun, had it known; {} for nothing to learn.

    Steps build on each other, so that those before the one that helped belong to it.
    """
    fields: dict[str, str | bool] = {}
    helped = False
    for step in recovery:
        helped = step.get("outcome") == "succeeded"
        action = step.get("action", "")
        for start, name, value in _FIELDS:
            if action.startswith(start):
                fields[name] = value
    return fields if helped else {}


def with_lesson(request: GenerationRequest, fields: Mapping[str, str | bool]) -> GenerationRequest:
    """Return the request with what was learned, as far as it leaves that open."""
    open_fields = {
        name: value
        for name, value in fields.items()
        if getattr(request, name) == type(request).model_fields[name].default
    }
    return request.model_copy(update=open_fields) if open_fields else request
