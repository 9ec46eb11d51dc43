"""What one item's recovery teaches the next: the table, held against the ladders that it reads."""

from __future__ import annotations

import pytest

from tests.policies.test_recovery import LADDERS, climb
from wan_compat.policies.batch.carry import lesson, with_lesson
from wan_compat.protocol.values import GenerationRequest

# Steps that are about one moment, or that no request can ask for by name.
NOT_CARRIED = ("restart", "again", "decode_whole", "decode_default_conv", "decode_float32", "decode_again",
               "text_encoder_leaves", "attention_default", "stream", "plain_kernels", "uncast",
               "cpu")  # fmt: skip  # a driver's bad moment must not slow down every video after it


def entry(action: str, outcome: str = "succeeded") -> dict[str, str]:
    return {"error": "memory_exceeded: too much", "action": action, "outcome": outcome}


@pytest.mark.parametrize("name", LADDERS)
def test_every_step_of_every_ladder_is_carried_or_known_not_to_be(name: str) -> None:
    for step in climb(*LADDERS[name][:2])[0]:
        fields = lesson([entry(step.action)])
        # Whole models instead of groups: on a CPU that is no offload at all, and the words do not tell.
        moment = step.name.startswith(NOT_CARRIED) or step.action.startswith("move whole models")
        assert bool(fields) != moment, step.name
        if fields:
            GenerationRequest(model="m", prompt="x", **fields)


def test_what_helped_is_carried_with_what_it_stands_on() -> None:
    tiles, files = (
        entry("decode in tiles of 256 pixels (seams may show)", "failed: again"),
        entry("leave the weights in their files until they are needed"),
    )
    assert lesson([tiles, files]) == {"vae_tiling": True, "offload": "group"}
    assert lesson([files, tiles]) == {}, "what did not help in the end teaches nothing"
    assert lesson([]) == {} and lesson([entry("pray")]) == {}


def test_what_was_asked_for_by_name_stays() -> None:
    learned = {"offload": "group", "precision": "bfloat16"}
    request = GenerationRequest(model="m", prompt="x", precision="float32")
    assert with_lesson(request, learned) == request.model_copy(update={"offload": "group"})
    assert with_lesson(request, {}) is request
