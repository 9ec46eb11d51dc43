"""From lines to items: defaults, seeds, keys, names; all that is wrong at once."""

from __future__ import annotations

from typing import Any

import pytest

from wan_compat.policies.batch import expansion
from wan_compat.policies.batch.expansion import expand
from wan_compat.policies.batch.items import MAX_SEEDS, Item, Line, Problem
from wan_compat.policies.batch.names import beside


def lines(*fields: dict[str, Any]) -> list[Line]:
    return [Line(number, each) for number, each in enumerate(fields, 1)]


def items(*fields: dict[str, Any], defaults: dict[str, Any] | None = None, **options: Any) -> list[Item]:
    found, problems = expand(lines(*fields), {"model": "/m"} | (defaults or {}), **options)
    assert problems == []
    return found


def problems(*fields: dict[str, Any], defaults: dict[str, Any] | None = None, **options: Any) -> list[Problem]:
    return expand(lines(*fields), {"model": "/m"} | (defaults or {}), **options)[1]


def test_a_line_goes_over_the_defaults_and_null_takes_one_away() -> None:
    defaults = {"negative_prompt": "blur", "num_frames": 9}
    plain, own, none = items({"prompt": "a"}, {"prompt": "b", "num_frames": 5}, {"prompt": "c", "negative_prompt": None}, defaults=defaults)  # fmt: skip
    assert (plain.request.negative_prompt, plain.request.num_frames) == ("blur", 9)
    assert own.request.num_frames == 5 and none.request.negative_prompt is None


@pytest.mark.parametrize(
    ("said", "seeds"),
    [({"seed": 7}, [7]), ({"seed": "7"}, [7]), ({"seeds": [3, 1]}, [3, 1]), ({"seed": 7, "seeds": 3}, [7, 8, 9])],
)
def test_seeds_are_as_said(said: dict[str, Any], seeds: list[int]) -> None:
    assert [item.seed for item in items({"prompt": "a"} | said)] == seeds


def test_a_lines_own_seed_replaces_default_seeds_and_the_other_way_round() -> None:
    assert [item.seed for item in items({"prompt": "a", "seed": 5}, defaults={"seeds": 3})] == [5]
    assert [item.seed for item in items({"prompt": "a", "seeds": [5, 6]}, defaults={"seed": 3})] == [5, 6]


def test_a_seed_that_nobody_named_is_drawn_from_the_content_and_stays() -> None:
    first, second, other = items({"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"})
    assert len({first.seed, second.seed, other.seed}) == 3
    again = items({"prompt": "new"}, {"prompt": "b"}, {"prompt": "a"}, {"prompt": "a"})
    assert [again[1].seed, again[2].seed, again[3].seed] == [other.seed, first.seed, second.seed]
    assert len({item.seed for item in items({"prompt": "a", "seeds": 50})}) == 50


def test_a_key_is_of_the_content_and_not_of_the_place_or_the_name() -> None:
    first = items({"prompt": "a", "seed": 1})[0]
    moved = items({"prompt": "x"}, {"prompt": "a", "seed": 1, "output": "other", "timeout_s": 9})[1]
    changed = items({"prompt": "a", "seed": 1, "num_inference_steps": 5})[0]
    assert moved.key == first.key != changed.key
    assert moved.output == "other.mp4"


def test_a_batch_that_moves_with_its_files_keeps_its_keys() -> None:
    here = items({"prompt": "a", "image": "/here/a.png"}, defaults={"model": "/here/m"}, base="/here")[0]
    there = items({"prompt": "a", "image": "/there/a.png"}, defaults={"model": "/there/m"}, base="/there")[0]
    other = items({"prompt": "a", "image": "/elsewhere/a.png"}, defaults={"model": "/there/m"}, base="/there")[0]
    assert here.key == there.key != other.key


def test_a_named_output_keeps_its_name_and_a_changed_line_does_not_take_it() -> None:
    first = items({"prompt": "a", "seed": 1})[0]
    renamed = items({"prompt": "a", "seed": 1}, template="{key}", known={first.key: first.output})[0]
    assert renamed.output == first.output
    taken = dict.fromkeys(beside(first.output), first.key)
    changed = items({"prompt": "a", "seed": 1, "num_inference_steps": 5}, taken=taken)[0]
    assert changed.output == f"0001-a-1-{changed.key[:8]}.mp4"


WRONG: list[tuple[list[dict[str, Any]], list[tuple[int, str]]]] = [
    ([{"prompt": "a"}, {}, {"prompt": ""}], [(2, "prompt"), (3, "prompt")]),
    ([{"prompt": "a", "num_frames": 0, "fps": 0, "width": "wide"}], [(1, "fps"), (1, "num_frames"), (1, "width")]),
    ([{"prompt": "a", "guidance_scale": float("nan")}], [(1, "guidance_scale")]),
    ([{"prompt": "a", "seeds": 0}], [(1, "seeds")]),
    ([{"prompt": "a", "seeds": MAX_SEEDS + 1}], [(1, "seeds")]),
    ([{"prompt": "a", "seeds": [1, 1]}], [(1, "seeds")]),
    ([{"prompt": "a", "seeds": [-1]}], [(1, "seeds")]),
    ([{"prompt": "a", "seed": 2**63}], [(1, "seed")]),
    ([{"prompt": "a", "seed": "x"}], [(1, "seed")]),
    ([{"prompt": "a", "seed": 1, "seeds": [1]}], [(1, "seed")]),
    ([{"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 1}], [(2, "seed")]),
    ([{"prompt": "a", "output": "{prompt}"}], [(1, "output")]),
    ([{"prompt": "a", "output": "../x"}], [(1, "output")]),
    ([{"prompt": "a", "output": "x"}, {"prompt": "b", "output": "X.MP4"}], [(2, "output")]),
    ([{"prompt": "a", "output": "x", "seeds": 2}], [(1, "output")]),
    ([{"prompt": "a", "output": "x.mp4"}, {"prompt": "b", "output": "x.mp4.poster.png"}], [(2, "output")]),
    ([{"prompt": "a", "loras": [{"path": "x", "weight": 99}]}], [(1, "loras.0.weight")]),
    ([], [(0, "")]),
]


@pytest.mark.parametrize(("said", "where"), WRONG, ids=[repr(case[0])[:50] for case in WRONG])
def test_all_that_is_wrong_is_told_with_its_place(said: list[dict[str, Any]], where: list[tuple[int, str]]) -> None:
    found = problems(*said)
    assert sorted((each.line, each.field) for each in found) == where
    assert all(each.why for each in found)


def test_a_model_may_be_missing_in_one_line_only() -> None:
    found = expand(lines({"prompt": "a"}, {"prompt": "b", "model": "/m"}), {})[1]
    assert [(each.line, each.field) for each in found] == [(1, "model")]


def test_there_is_an_end_to_seeds_times_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expansion, "MAX_ITEMS", 10)
    assert "more than 10" in problems({"prompt": "a", "seeds": 6}, {"prompt": "b", "seeds": 6})[0].why
