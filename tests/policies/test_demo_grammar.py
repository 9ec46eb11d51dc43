"""The demo's grammar: what a prompt asks for, as far as the words reach."""

from __future__ import annotations

import random

import pytest

from tools.demo_model.captions import caption, sample_attributes
from wan_compat.policies.demo_grammar import GRAMMAR, PLAIN_BACKGROUNDS, SCENIC_BACKGROUNDS, understand


@pytest.mark.parametrize(
    ("prompt", "answers", "words"),
    [
        ("a red ball rises over the sea", ("red", "circle", "up", "sea"), ("red", "ball", "rises", "over the sea")),
        ("on dark red, an orange disc sliding right", ("orange", "circle", "right", "dark red"), None),
        ("a box that is green standing still at sunset", ("green", "square", "still", "sunset"), None),
        ("A  Blue STAR\nspins on GRAY.", ("blue", "star", "spin", "grey"), None),
        ("over a green meadow, a triangle grows", (None, "triangle", "grow", "meadow"), None),
        ("a red car drives left", ("red", None, "left", None), ("red", "left")),
        ("a blue star on a blue background", ("blue", "star", None, None), None),
        ("a white ball against a white background", ("white", "circle", None, "white"), None),
        ("two cats dancing, cinematic", (None, None, None, None), ()),
        ("", (None, None, None, None), ()),
        ("starfish and a redhead, squared", (None, None, None, None), ()),
    ],
)
def test_prompt_is_understood_as_far_as_it_goes(
    prompt: str, answers: tuple[str | None, ...], words: tuple[str, ...] | None
) -> None:
    understood = understand(prompt)
    assert (understood.colour, understood.shape, understood.motion, understood.background) == answers
    assert words is None or understood.words == words
    names = ("colour", "shape", "motion", "background")
    assert understood.missing == tuple(name for name, answer in zip(names, answers, strict=True) if answer is None)


def test_every_caption_of_the_training_is_understood_whole() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        attributes = sample_attributes(rng, rng.choice(("train", "choose", "test")))
        text = caption(rng, attributes)
        understood = understand(text)
        assert understood.missing == (), text
        assert (understood.shape, understood.colour, understood.background, understood.motion) == attributes, text


def test_grammar_names_every_background() -> None:
    for name in (*PLAIN_BACKGROUNDS, *SCENIC_BACKGROUNDS):
        assert name in GRAMMAR
