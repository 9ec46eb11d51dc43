"""Peaks of memory by phase of a generation: on a GPU what its allocator counts, on a CPU what memory_count.py counts.

    text_encode -> denoise_high -> denoise_low, where there is a second expert -> decode

The GPU's counter costs nothing and always runs; the CPU's runs when the order asks for it.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from wan_compat.workers.memory_count import MemoryCount


class PhaseMemory:
    """`peaks` has the most bytes of each phase when the generation is over; empty where nothing counted."""

    def __init__(self, pipeline: Any, device: str, *, count: bool) -> None:
        parts = getattr(pipeline, "components", {}).values()
        self._pipeline = pipeline
        self._count: MemoryCount | None = None
        if count and device == "cpu":
            self._count = MemoryCount([part for part in parts if isinstance(part, torch.nn.Module)])
        self._gpu = device == "cuda"
        self._phase: str | None = None
        self.peaks: dict[str, int] = {}

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count during one generation, and see which part is at work."""
        # The first thing that AutoencoderKLWan computes of latents, in tiles or whole: pipelines of segments and chunks
        # decode between their steps.
        at_work = {
            "denoise_high": getattr(self._pipeline, "transformer", None),
            "denoise_low": getattr(self._pipeline, "transformer_2", None),
            "decode": getattr(getattr(self._pipeline, "vae", None), "post_quant_conv", None),
        }
        hooks = [
            part.register_forward_pre_hook(lambda *_, phase=phase: self.begin(phase), prepend=True)
            for phase, part in at_work.items()
            if isinstance(part, torch.nn.Module)
        ]
        with self._count or contextlib.nullcontext():
            self.begin("text_encode")
            try:
                yield
            finally:
                self._end()
                for hook in hooks:
                    hook.remove()
        if self._count is not None:
            self.peaks = dict(self._count.peaks)

    def begin(self, phase: str) -> None:
        """A phase begins; again and again the same one is no news."""
        if phase == self._phase:
            return
        self._end()
        self._phase = phase
        if self._count is not None:
            self._count.phase(phase)
        elif self._gpu:
            torch.cuda.reset_peak_memory_stats()

    def _end(self) -> None:
        if self._count is not None:
            self._count.end_phase()
        elif self._gpu and self._phase is not None:
            peak = torch.cuda.max_memory_allocated()
            self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), peak)
        self._phase = None
