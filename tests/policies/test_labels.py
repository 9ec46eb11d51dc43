"""What goes into a file about its making: by level, bounded, and in ASCII."""

from __future__ import annotations

import json

import pytest

from wan_compat.policies.encoding.command import MAX_COMMENT_CHARS
from wan_compat.policies.encoding.labels import label
from wan_compat.protocol.video import MetadataLevel

PARAMETERS = {"prompt": "a s3cret", "negative_prompt": None, "seed": 3, "fps": 8.0, "image": "/home/me/x.png"}


def made(level: str, **changes: object) -> str:
    fields = {"version": "1", "model": "a/b", "revision": "c0ffee", "parameters": PARAMETERS} | changes
    return label(MetadataLevel(level), **fields)


def test_minimal_has_numbers_and_no_text_of_the_users():
    said = json.loads(made("minimal"))
    assert said == {
        "generator": "wan-compat 1",
        "model": "a/b",
        "revision": "c0ffee",
        "parameters": {"seed": 3, "fps": 8.0},
    }


def test_full_has_the_prompt_and_no_path_and_none_has_nothing():
    assert json.loads(made("full"))["prompt"] == "a s3cret"
    assert "/home/me" not in made("full")
    assert made("none") == ""


@pytest.mark.parametrize("prompt", ["x" * 20_000, "\U0001f98a" * 20_000, "\x00\n\u202e" * 6_000, "ä" * 20_000])
def test_a_label_is_bounded_and_ascii(prompt):
    text = made("full", parameters=PARAMETERS | {"prompt": prompt, "negative_prompt": prompt})
    assert 0 < len(text) <= MAX_COMMENT_CHARS and text.isascii() and "\n" not in text and "\0" not in text
    assert json.loads(text)["prompt"]
