"""How much memory a generation takes: planning computes it from headers, a loaded pipeline asks itself."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class MemoryEstimate:
    """Megabytes (of 1,000,000 bytes) per phase, in main memory and on the GPU.

    Phases are text_encode, denoise_high, denoise_low where there is a second expert, and decode.
    """

    vram_mb: dict[str, int]
    ram_mb: dict[str, int]
    peak_vram_mb: int
    fits: bool
    peak_ram_mb: int = 0
