"""The prompts that measurements use: fixed by their split and number."""

from __future__ import annotations

import random

from tools.demo_model.captions import Attributes, Split, caption, sample_attributes


def prompts(split: Split, count: int) -> list[tuple[Attributes, str]]:
    """The first `count` prompts of a split, always the same; a clip's seed is its place in the list.

    Those of "test" name combinations of attributes that no training saw and no choice was made with.
    """
    rng = random.Random(f"prompts of {split}")
    drawn = [sample_attributes(rng, split) for _ in range(1000)]  # as many as anybody asks for, so that they stay
    return [(attributes, caption(rng, attributes)) for attributes in drawn][:count]
