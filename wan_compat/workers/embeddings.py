"""A prompt's embeddings, computed once: kept for later jobs, so that the text encoder need not stay or even run.

The seam is `_get_t5_prompt_embeds` of one pipeline, which every Wan pipeline of diffusers calls for each text: below it
lies the encoder, above it everything that differs from one pipeline to the next. What it returned is returned again, so
that frames are equal bit for bit. A pipeline without it keeps its own way.

A worker serves jobs of one user and one model, so that nothing is told to anybody who could not ask for it again.
"""

from __future__ import annotations

import collections
import functools
import inspect
from typing import Any

import torch

from wan_compat.workers.residence import Residence

# A prompt of 512 tokens of UMT5-XXL has 4 MiB in bfloat16. Batches repeat a handful of prompts.
MAX_BYTES = 64 << 20
MAX_PROMPTS = 64

_SEAM = "_get_t5_prompt_embeds"


Embedded = torch.Tensor | tuple[torch.Tensor, ...]  # Helios' pipelines return a mask too


def _copy(value: Embedded) -> Embedded:
    return tuple(tensor.clone() for tensor in value) if isinstance(value, tuple) else value.clone()


class Embeddings:
    """What was computed, the least recently used dropped first."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_prompts: int = MAX_PROMPTS) -> None:
        self._kept: collections.OrderedDict[Any, Embedded] = collections.OrderedDict()
        self._max_bytes, self._max_prompts = max_bytes, max_prompts
        self.computed = 0
        self.reused = 0

    def take(self, key: Any) -> Embedded | None:
        """Return a copy, which the pipeline may write to."""
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        self.reused += 1
        return _copy(found)

    def keep(self, key: Any, value: Embedded) -> None:
        self.computed += 1
        self._kept[key] = _copy(value)
        self._kept.move_to_end(key)
        while len(self._kept) > self._max_prompts or (self.nbytes > self._max_bytes and self._kept):
            self._kept.popitem(last=False)

    @property
    def nbytes(self) -> int:
        tensors = (tensor for kept in self._kept.values() for tensor in (kept if isinstance(kept, tuple) else (kept,)))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def keep_embeddings(pipeline: Any, encoder: Residence | None = None) -> Embeddings | None:
    """Make `pipeline` compute each prompt once; `encoder` leaves whenever prompts have been encoded.

    Returns:
        Where they are kept; None for a pipeline that has no such seam, in which case nothing was changed.
    """
    compute = getattr(pipeline, _SEAM, None)
    if compute is None or not hasattr(pipeline, "encode_prompt"):
        return None
    embeddings = Embeddings()
    signature = inspect.signature(compute)

    @functools.wraps(compute)
    def embed(*args: Any, **kwargs: Any) -> Embedded:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        # Prompts are texts or lists of texts; the rest are numbers, a device and a type.
        key = tuple((name, repr(value)) for name, value in given.arguments.items())
        kept = embeddings.take(key)
        if kept is None:
            kept = compute(*args, **kwargs)
            embeddings.keep(key, kept)
        return kept

    setattr(pipeline, _SEAM, embed)
    if encoder is not None:
        encode = pipeline.encode_prompt

        @functools.wraps(encode)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            try:
                return encode(*args, **kwargs)
            finally:
                encoder.leave()

        pipeline.encode_prompt = encode_prompt
    return embeddings
