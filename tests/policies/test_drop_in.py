"""What a diffusers script may ask of a sandboxed pipeline: prompts, seeds, and a refusal with its alternative."""

from __future__ import annotations

import pytest

from wan_compat.policies import drop_in
from wan_compat.protocol.errors import InvalidRequest, PipelineFeatureMissing
from wan_compat.protocol.values import MAX_SEED


def test_all_videos_of_the_first_prompt_come_first_as_in_diffusers():
    assert drop_in.prompts_of(["a", "b"], None, 2) == [("a", None), ("a", None), ("b", None), ("b", None)]


def test_one_negative_prompt_is_for_all_and_several_are_for_one_each():
    assert drop_in.prompts_of(["a", "b"], "n", 1) == [("a", "n"), ("b", "n")]
    assert drop_in.prompts_of(["a", "b"], ["m", "n"], 1) == [("a", "m"), ("b", "n")]


@pytest.mark.parametrize(
    ("prompt", "negative", "each"),
    [
        (None, None, 1),
        ([], None, 1),
        (7, None, 1),
        (["a", 7], None, 1),
        ("a", ["m", "n"], 1),
        ("a", [3], 1),
        ("a", None, 0),
    ],
)
def test_prompts_that_do_not_go_together_are_refused(prompt, negative, each):
    with pytest.raises(InvalidRequest):
        drop_in.prompts_of(prompt, negative, each)


def test_a_picture_in_the_place_of_the_prompt_is_told_to_be_named():
    with pytest.raises(InvalidRequest, match="object") as caught:
        drop_in.prompts_of(object(), None, 1)
    assert "image=" in (caught.value.hint or "")


def test_one_seed_is_counted_up_and_several_are_for_one_video_each():
    assert drop_in.spread_seeds([7], 3) == [7, 8, 9]
    assert drop_in.spread_seeds([MAX_SEED], 2) == [MAX_SEED, 0]
    assert drop_in.spread_seeds([None], 2) == [None, None]
    assert drop_in.spread_seeds([5, 1], 2) == [5, 1]
    with pytest.raises(InvalidRequest, match="2 generators were given for 3 videos"):
        drop_in.spread_seeds([5, 1], 3)


@pytest.mark.parametrize("value", [{"use_safetensors": True}, {"local_files_only": True}, {"trust_remote_code": False}])
def test_arguments_that_ask_for_what_is_done_anyway_are_taken(value):
    drop_in.check_load_arguments(value)


@pytest.mark.parametrize("name", [*drop_in.LOAD_INSTEAD, "use_safetensors", "nothing_known"])
def test_every_other_argument_of_loading_is_refused_with_an_alternative(name):
    with pytest.raises(PipelineFeatureMissing, match=name) as caught:
        drop_in.check_load_arguments({name: "x"})
    assert caught.value.hint


def test_no_alternative_advises_turning_on_remote_code():
    tables = (drop_in.CALL_INSTEAD, drop_in.LOAD_INSTEAD, drop_in.ATTRIBUTE_INSTEAD)
    words = [hint for table in tables for hint in table.values()]
    assert not [hint for hint in words if "trust_remote_code" in hint or "--trust" in hint]
