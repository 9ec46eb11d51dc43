"""The demo model's data and its judge: who is held out, what a clip looks like to the program that judges it."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from tools.demo_model import scenes
from tools.demo_model.captions import Attributes, caption, possible, sample_attributes, split_of, vocabulary
from tools.demo_model.fields import CHANNELS, LATENT_FRAMES, draw_fields
from tools.demo_model.judge import agrees, look
from wan_compat.policies.demo_grammar import BACKGROUNDS, COLOURS, MOTIONS, SHAPES


def test_test_prompts_name_combinations_that_no_training_sees() -> None:
    everything = [Attributes(s, c, b, m) for s in SHAPES for c in COLOURS for b in BACKGROUNDS for m in MOTIONS]
    splits = Counter(split_of(a) for a in everything if possible(a))
    assert splits.keys() == {"train", "choose", "test"}
    assert min(splits["choose"], splits["test"]) > 200
    rng = random.Random(0)
    assert {split_of(sample_attributes(rng)) for _ in range(500)} == {"train"}
    assert {split_of(sample_attributes(rng, "test")) for _ in range(50)} == {"test"}


def test_every_word_of_every_value_appears_in_training() -> None:
    rng = random.Random(0)
    seen = Counter(value for _ in range(2000) for value in sample_attributes(rng))
    assert set(seen) == {*SHAPES, *COLOURS, *BACKGROUNDS, *MOTIONS}
    known = set(vocabulary())
    for _ in range(300):
        text = caption(rng, sample_attributes(rng)).lower()
        assert set(text.replace(",", " ").replace(".", " ").split()) <= known, text


@pytest.mark.parametrize("motion", MOTIONS)
def test_judge_sees_what_a_true_clip_shows(motion: str) -> None:
    rng = random.Random(motion)
    for shape in SHAPES:
        asked = Attributes(shape, rng.choice(COLOURS[:-1]), rng.choice(BACKGROUNDS), motion)
        if possible(asked):
            clip = scenes.render(scenes.sample_scene(rng, asked)).astype(np.uint8)
            seen = look(clip)
            assert all(agrees(asked, seen).values()), (asked, seen)
            assert seen.edge < 1.5  # a little more than one pixel: the sea is not of one colour


def test_judge_sees_nothing_where_nothing_is() -> None:
    empty = np.full((33, 96, 160, 3), 30, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, empty.shape, np.uint8)
    for clip in (empty, noise):
        seen = look(clip)
        assert (seen.shape, seen.motion) == (None, None)


def _true(shape: str = "star", motion: str = "left") -> np.ndarray:
    asked = Attributes(shape, "red", "black", motion)
    return scenes.render(scenes.sample_scene(random.Random(1), asked))


def test_judge_wants_the_object_from_the_first_frame_on() -> None:
    late = _true()
    late[0] = late[0, :1, :1]
    assert look(late).shape is None


def test_judge_takes_no_blob_for_a_shape() -> None:
    clip = _true("circle", "still")
    flat = np.concatenate([clip[:, :24], clip[:, 24:72:3], clip[:, 72:], clip[:, :32]], 1)
    seen = look(flat)  # a disc pressed to a third of its height
    assert (seen.shape, seen.colour) == (None, "red")


def test_judge_sees_the_way_of_time() -> None:
    assert look(_true(motion="left")[::-1]).motion == "right"
    assert look(_true(motion="grow")[::-1]).motion == "shrink"


def test_fields_are_centred_as_the_transformer_expects() -> None:
    rng = random.Random(4)
    fields = np.stack([draw_fields(scenes.sample_scene(rng, sample_attributes(rng))) for _ in range(200)])
    assert fields.shape == (200, CHANNELS, LATENT_FRAMES, 6, 10)
    mean, deviation = fields.mean((0, 2, 3, 4)), fields.std((0, 2, 3, 4))
    assert np.abs(mean).max() < 0.3, mean
    assert deviation.min() > 0.3 and deviation.max() < 1.4, deviation


def test_fields_of_a_window_are_a_window_of_the_fields() -> None:
    scene = scenes.sample_scene(random.Random(2), Attributes("star", "blue", "sea", "spin"))
    whole = draw_fields(scene)
    part = draw_fields(scene.cut(8, 9), left=32, top=16, width=64, height=64)
    assert np.allclose(whole[:, 3:5, 1:5, 2:6], part[:, 1:], atol=1e-5)
