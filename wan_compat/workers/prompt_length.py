"""Whether a model reads a whole prompt. Its tokenizer cuts what is longer, and diffusers says nothing of it."""

from __future__ import annotations

import contextlib
from typing import Any

from wan_compat.protocol.values import GenerationParams


def describe_cut(pipeline: Any, params: GenerationParams) -> tuple[str, ...]:
    """Return a remark on each text of which the model did not read the end."""
    tokenizer = getattr(pipeline, "tokenizer", None)
    remarks: list[str] = []
    # A tokenizer is the model's: what it cannot count is no reason to lose a video over a remark.
    with contextlib.suppress(Exception):
        for name, text in (("prompt", params.prompt), ("negative prompt", params.negative_prompt)):
            count = len(tokenizer(text, verbose=False)["input_ids"]) if tokenizer is not None and text else 0
            if count > params.max_sequence_length:
                remarks.append(
                    f"the {name} has {count} tokens, and the model read the first {params.max_sequence_length}"
                )
    return tuple(remarks)
