"""Names made of a prompt tell the prompt; a log without prompts is without them too."""

import pytest

from wan_compat.policies.batch.names import slug
from wan_compat.policies.prompt_traces import without_prompt
from wan_compat.supervisor.cli.runner import name_for_prompt

FOX = "A red fox, in fresh snow at dawn!"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"/out/0001-{slug(FOX)}-7.mp4", "/out/0001-<prompt>-7.mp4"),
        (f"/out/{name_for_prompt(FOX)}.mp4", "/out/<prompt>.mp4"),
        (f"/out/{slug(FOX)[:15]}.mp4", "/out/<prompt>.mp4"),
        (f"the prompt {FOX!r} is too long", "the prompt '<prompt>' is too long"),
        ("a-red-fo and a-red-fox-in", "<prompt> and <prompt>"),
        ("/models/a-red-cat/x", "/models/a-red-cat/x"),
        ("delta-a-red", "delta-a-red"),
    ],
)
def test_a_name_made_of_a_prompt_goes_and_the_rest_stays(text: str, left: str) -> None:
    assert without_prompt(text, FOX) == left


@pytest.mark.parametrize(
    ("prompt", "text", "left"),
    [
        ("fox", "/out/fox-7.mp4", "/out/<prompt>-7.mp4"),
        ("fox", "/out/foxes.mp4", "/out/foxes.mp4"),
        ("x", "/out/x.mp4", "/out/x.mp4"),
        ("", "/out/x.mp4", "/out/x.mp4"),
        ("ein grüner Ball", "/out/ein-gruner-ball.mp4", "/out/<prompt>.mp4"),
        ("猫が歩く", "猫が歩く: no", "<prompt>: no"),
        ("a.*b(c)[d] e", "a-b-c-d-e.mp4", "<prompt>.mp4"),
    ],
)
def test_short_and_odd_prompts(prompt: str, text: str, left: str) -> None:
    assert without_prompt(text, prompt) == left


def test_it_goes_through_plain_data() -> None:
    found = without_prompt({"output": "a-red-fox-in.mp4", "n": 5, "steps": [("a-red-fox", None)]}, FOX)
    assert found == {"output": "<prompt>.mp4", "n": 5, "steps": [["<prompt>", None]]}
