"""Which models a LoRA of a given width fits: its tensors tell the size of the base and little else."""

from __future__ import annotations

_BASES: dict[tuple[int, bool], tuple[str, ...]] = {
    (1536, False): ("wan2.1-t2v-1.3b", "wan2.1-vace-1.3b"),
    (1536, True): ("wan2.1-fun-1.3b-inp", "wan2.1-fun-1.3b-control"),
    (3072, False): ("wan2.2-ti2v-5b", "wan2.2-fun-5b-inp"),
    (5120, False): ("wan2.1-t2v-14b", "wan2.2-t2v-a14b", "wan2.2-i2v-a14b", "wan2.1-vace-14b"),
    (5120, True): (
        "wan2.1-i2v-14b-480p",
        "wan2.1-i2v-14b-720p",
        "wan2.1-flf2v-14b-720p",
        "wan2.2-animate-14b",
        "chronoedit-14b",
    ),
}


def bases_of_lora(dim: int | None, *, image: bool) -> tuple[str, ...]:
    """Return the variants that a LoRA can be for, likeliest first. Image layers exclude 2.2, which has none."""
    return _BASES.get((dim or 0, image), ())
