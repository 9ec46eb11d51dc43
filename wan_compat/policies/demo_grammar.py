"""What the demo model can be asked for: its words, and which of them a prompt holds.

    [a|the|one] COLOUR SHAPE MOTION BACKGROUND        a red ball rises over the sea

One list for everyone: the training draws its captions from these phrases (tools/demo_model/captions.py), and the
command line tells a user which words of a prompt were understood. A prompt outside the grammar still runs.
"""

from __future__ import annotations

import dataclasses
import re

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "white")
SHAPES = {
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
}
MOTIONS = {
    "left": (
        "moving left", "moving to the left", "moves left", "moves to the left", "sliding left", "slides to the left",
        "drifting left", "flying to the left", "going left",
    ),
    "right": (
        "moving right", "moving to the right", "moves right", "moves to the right", "sliding right",
        "slides to the right", "drifting right", "flying to the right", "going right",
    ),
    "up": ("moving up", "moves up", "rising", "rises", "moving upwards", "going up", "flying up", "floating up"),
    "down": ("moving down", "moves down", "falling", "falls", "moving downwards", "going down", "dropping", "sinking"),
    "grow": ("growing", "grows", "getting bigger", "growing larger", "getting larger"),
    "shrink": ("shrinking", "shrinks", "getting smaller", "growing smaller"),
    "spin": ("spinning", "spins", "rotating", "rotates", "turning around", "spinning around"),
    "bounce": (
        "bouncing", "bounces", "bouncing up and down", "jumping", "jumping up and down", "bounces up and down",
    ),
    "still": ("standing still", "not moving", "staying still", "at rest", "still", "motionless"),
}  # fmt: skip
PLAIN_BACKGROUNDS = ("black", "white", "grey", "dark blue", "light blue", "dark green", "dark red")
SCENIC_BACKGROUNDS = {
    "sunset": ("at sunset", "over a sunset sky", "in front of a sunset", "against a sunset sky"),
    "meadow": ("over a green meadow", "in a meadow", "over a meadow", "above a green meadow"),
    "sea": ("over the sea", "above the sea", "over the ocean", "above the blue ocean"),
}
BACKGROUNDS = (*PLAIN_BACKGROUNDS, *SCENIC_BACKGROUNDS)

GRAMMAR = (
    "COLOUR SHAPE MOTION BACKGROUND, for example: a red ball rises over the sea\n"
    f"  colours      {', '.join(COLOURS)}\n"
    f"  shapes       {', '.join(word for words in SHAPES.values() for word in words)}\n"
    "  motions      moving left, right, up or down; rising, falling, growing, shrinking, spinning, bouncing, still\n"
    f"  backgrounds  on {', '.join(PLAIN_BACKGROUNDS)}; at sunset, over a meadow, over the sea"
)

# Wordings that mean a motion beside those of MOTIONS: "flies left", "slowly falls", "ascending" stays unknown.
_DIRECTIONS = re.compile(r"\b(?:to the |towards the )?(left|right|up|down|upwards|downwards)\b")
_PLAIN = re.compile(
    r"\b(?:(?P<preposition>on|over|against|in front of) (?:an? |the )?(?P<first>COLOUR)(?: background)?(?=[ ,.]|$)"
    r"|(?P<second>COLOUR) background)".replace(
        "COLOUR", "|".join((*sorted(PLAIN_BACKGROUNDS, key=len, reverse=True), "gray"))
    )
)
_SCENIC = {
    "sunset": re.compile(r"\b(?:at |over a |in front of a |against a )?sunset(?: sky)?\b"),
    "meadow": re.compile(r"\b(?:(?:over|in|above) )?(?:an? |the )?(?:green )?meadow\b"),
    "sea": re.compile(r"\b(?:(?:over|above) )?(?:the )?(?:blue )?(?:sea|ocean)\b"),
}


@dataclasses.dataclass(frozen=True)
class Understood:
    """What a prompt asks for, as far as the grammar reaches; None where it says nothing that the model knows.

    `words` are the parts of the prompt behind the four answers, in its order and in lower case.
    """

    colour: str | None
    shape: str | None
    motion: str | None
    background: str | None
    words: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The attributes that the prompt leaves open."""
        return tuple(name for name in ("colour", "shape", "motion", "background") if getattr(self, name) is None)


def understand(prompt: str) -> Understood:
    """Read a prompt as far as the demo model's grammar goes. Never fails: what is not known is left open.

    Each part of the text counts once: "green" of "a green meadow" is no colour of the object.
    """
    rest = re.sub(r"\s+", " ", prompt.lower())
    taken: list[tuple[int, str]] = []

    def take(match: re.Match[str]) -> None:
        nonlocal rest
        taken.append((match.start(), match.group().strip()))
        rest = rest[: match.start()] + " " * len(match.group()) + rest[match.end() :]

    background = None
    for name, pattern in _SCENIC.items():
        if background is None and (match := pattern.search(rest)):
            background = name
            take(match)
    if background is None and (match := _PLAIN.search(rest)):
        background = (match["first"] or match["second"]).replace("gray", "grey")
        take(match)
    motion = None
    for phrase, name in sorted(_PHRASES, key=lambda pair: -len(pair[0])):
        if motion is None and (match := re.search(rf"\b{phrase}\b", rest)):
            motion = name
            take(match)
    if motion is None and (match := _DIRECTIONS.search(rest)):
        motion = match[1].removesuffix("wards")
        take(match)
    shape = None
    for name, nouns in SHAPES.items():
        if shape is None and (match := re.search(rf"\b(?:{'|'.join(nouns)})\b", rest)):
            shape = name
            take(match)
    colour = None
    if match := re.search(rf"\b(?:{'|'.join(COLOURS)})\b", rest):
        colour = match.group()
        take(match)
    return Understood(colour, shape, motion, background, tuple(words for _, words in sorted(taken)))


_PHRASES = [(phrase, name) for name, phrases in MOTIONS.items() for phrase in phrases]
