"""Sentences about clips, and which combinations of attributes no training ever sees."""

from __future__ import annotations

import random
import re
from typing import Literal, NamedTuple

from wan_compat.policies.demo_grammar import BACKGROUNDS, COLOURS, MOTIONS, SCENIC_BACKGROUNDS, SHAPES

Split = Literal["train", "choose", "test"]

# Words that may stand before the object instead of a phrase behind it: "a spinning blue star".
FRONT = {
    "up": ("rising",),
    "down": ("falling", "sinking"),
    "grow": ("growing",),
    "shrink": ("shrinking",),
    "spin": ("spinning", "rotating"),
    "bounce": ("bouncing", "jumping"),
    "still": ("still", "motionless"),
}
PREFIXES = ("a video of", "a clip of", "an animation of", "a short video of")
SUFFIXES = ("simple animation", "high quality", "smooth motion", "flat colours")
# What people put into negative prompts: to the model all of it means "nothing said".
EMPTY = (
    "",
    "",
    "",
    "blurry, low quality",
    "static, blurry, low quality, distorted, watermark, text",
    "bright colours, overexposed, static, blurred details, subtitles, worst quality, low quality",
)


class Attributes(NamedTuple):
    """What a clip shows; the words are the grammar's."""

    shape: str
    colour: str
    background: str
    motion: str


def possible(a: Attributes) -> bool:
    """Whether the clip could be told from others: a spinning circle and white on white could not."""
    return not (a.shape == "circle" and a.motion == "spin") and not (a.colour == "white" and a.background == "white")


def split_of(a: Attributes) -> Split:
    """Nine of eleven combinations are trained on, one chooses among checkpoints and settings, one measures."""
    rest = (
        list(SHAPES).index(a.shape) * 7
        + COLOURS.index(a.colour) * 3
        + BACKGROUNDS.index(a.background) * 5
        + list(MOTIONS).index(a.motion) * 2
    ) % 11
    return "test" if rest == 0 else "choose" if rest == 4 else "train"


def sample_attributes(rng: random.Random, split: Split = "train") -> Attributes:
    """Draw a combination of `split`."""
    while True:
        a = Attributes(
            rng.choice(list(SHAPES)), rng.choice(COLOURS), rng.choice(BACKGROUNDS), rng.choice(list(MOTIONS))
        )
        if possible(a) and split_of(a) == split:
            return a


def caption(rng: random.Random, a: Attributes) -> str:
    """Say it in one of many ways."""
    noun, motion, background = rng.choice(SHAPES[a.shape]), _motion(rng, a.motion), _background(rng, a.background)
    article = rng.choice(("a", "a", "a", "the", "one"))
    subject = f"{article} {a.colour} {noun}"
    orders = [
        (0.56, f"{subject} {motion} {background}"),
        (0.10, f"{background}, {subject} {motion}"),
        (0.10, f"{subject} {background}, {motion}"),
        (0.10, f"{subject} {motion}, {background}"),
        (0.06, f"{article} {noun} that is {a.colour} {motion} {background}"),
    ]
    if a.motion in FRONT:
        orders.append((0.08, f"{article} {rng.choice(FRONT[a.motion])} {a.colour} {noun} {background}"))
    text = rng.choices([words for _, words in orders], [weight for weight, _ in orders])[0]
    text = text.replace("a orange", "an orange")
    extra = rng.random()
    if extra < 0.06:
        return f"{rng.choice(PREFIXES)} {text}"
    if extra < 0.12:
        return f"{text}, {rng.choice(SUFFIXES)}"
    return text + "." * (extra < 0.18)


def partial_caption(rng: random.Random, a: Attributes) -> str:
    """Say only a part of it: users do, and the rest is then the model's choice."""
    parts = [f"a {a.colour} {rng.choice(SHAPES[a.shape])}", _motion(rng, a.motion), _background(rng, a.background)]
    left_out = rng.randrange(3)
    if left_out == 0:
        parts[0] = f"a {rng.choice(SHAPES[a.shape])}" if rng.random() < 0.5 else f"something {a.colour}"
    else:
        del parts[left_out]
    return " ".join(parts).replace("a orange", "an orange")


def vocabulary() -> list[str]:
    """Every word that a caption may hold, and some that users are likely to add; sorted."""
    texts = [
        phrase for table in (SHAPES, MOTIONS, SCENIC_BACKGROUNDS, FRONT) for row in table.values() for phrase in row
    ]
    texts += [*PREFIXES, *SUFFIXES, *EMPTY, *COLOURS, *BACKGROUNDS]
    texts.append(
        "over a background on against in front of the one an that is gray something slowly quickly small big large "
        "little video bright dark light colour color moving shape scene camera sky night"
    )
    return sorted(set(re.findall(r"[a-z]+", " ".join(texts).lower())))


def _motion(rng: random.Random, motion: str) -> str:
    # "a red ball still on black" is no English: the bare words stand in front of the object only.
    return rng.choice([phrase for phrase in MOTIONS[motion] if phrase not in ("still", "motionless")])


def _background(rng: random.Random, background: str) -> str:
    if background in SCENIC_BACKGROUNDS:
        return rng.choice(SCENIC_BACKGROUNDS[background])
    colour = rng.choice(("grey", "gray")) if background == "grey" else background
    pattern = rng.choice(
        (
            "over a {} background",
            "on a {} background",
            "against a {} background",
            "in front of a {} background",
            "on {}",
        )
    )
    return pattern.format(colour)
