"""Several videos of one prompt: rounds, names, and which calls of diffusers are one job."""

from __future__ import annotations

import pytest

from wan_compat.policies import drop_in
from wan_compat.policies.videos import Round, outputs_of, rounds, what_is_left
from wan_compat.protocol.values import MAX_SEED, GenerationRequest, seed_after


@pytest.mark.parametrize(
    ("num_videos", "at_once", "expected"),
    [
        (1, 1, [(0, 1)]),
        (1, 16, [(0, 1)]),
        (3, 1, [(0, 1), (1, 1), (2, 1)]),
        (5, 2, [(0, 2), (2, 2), (4, 1)]),
        (4, 8, [(0, 4)]),
    ],
)
def test_rounds_make_every_video_once(num_videos, at_once, expected):
    found = rounds(num_videos, at_once)
    assert [(one.first, one.size) for one in found] == expected
    assert [number for one in found for number in one] == list(range(num_videos))


def test_what_is_left_of_a_round_begins_after_what_stands():
    assert Round(4, 3).after(2) == Round(6, 1)


def test_names_of_several_videos_sort_as_the_videos_do():
    assert outputs_of("out/fox.mp4", 1) == ["out/fox.mp4"]
    assert outputs_of("out/fox.v2.mp4", 2) == ["out/fox.v2-1.mp4", "out/fox.v2-2.mp4"]
    assert outputs_of("frames/", 2) == ["frames-1", "frames-2"]
    names = outputs_of("fox.mp4", 12)
    assert names[0] == "fox-01.mp4" and names[11] == "fox-12.mp4" and sorted(names) == names


def test_seeds_follow_each_other_and_begin_again_after_the_last():
    assert [seed_after(7, number) for number in range(3)] == [7, 8, 9]
    assert seed_after(MAX_SEED, 1) == 0


def test_what_is_left_is_told_in_options():
    assert what_is_left(1, 4, 8, None) == "--seed 8 --num-videos 3"
    assert what_is_left(3, 4, 10, None) == "--seed 10"


def test_what_is_left_gets_names_that_overwrite_nothing():
    assert what_is_left(1, 4, 8, "a fox.mp4") == "--seed 8 --num-videos 3 --output 'a fox-more.mp4'"
    assert what_is_left(3, 4, 10, "out/fox.mp4") == "--seed 10 --output out/fox-4.mp4"


def request(prompt: str, seed: int | None, **fields: object) -> GenerationRequest:
    return GenerationRequest(model="m", prompt=prompt, seed=seed, **fields)


def test_videos_of_one_prompt_whose_seeds_follow_are_one_job():
    def told(*asked: tuple[str, int | None]) -> list[tuple[str, int | None, int]]:
        jobs = drop_in.joined([request(prompt, seed) for prompt, seed in asked])
        return [(job.prompt, job.seed, job.num_videos) for job in jobs]

    assert told(("a", 5), ("a", 6), ("a", 7)) == [("a", 5, 3)]
    assert told(("a", None), ("a", None)) == [("a", None, 2)]
    assert told(("a", 5), ("a", 5)) == [("a", 5, 1), ("a", 5, 1)]
    assert told(("a", 5), ("a", 7)) == [("a", 5, 1), ("a", 7, 1)]
    assert told(("a", 5), ("b", 6), ("b", 7)) == [("a", 5, 1), ("b", 6, 2)]
    assert told(("a", 5), ("a", None)) == [("a", 5, 1), ("a", None, 1)]
    assert told(*[("a", seed) for seed in range(65)]) == [("a", 0, 64), ("a", 64, 1)]
    other = [request("a", 1), request("a", 2, negative_prompt="blurred")]
    assert drop_in.joined(other) == other
