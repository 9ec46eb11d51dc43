"""Records of the journal, what they amount to, and what is left."""

from __future__ import annotations

import itertools
import json
import zlib
from typing import Any

import pytest

from wan_compat.policies.batch import records as r
from wan_compat.policies.batch.expansion import expand
from wan_compat.policies.batch.items import Line
from wan_compat.policies.batch.progress import Progress, Shard, left_to_do, parse_shard, remaining_s

ITEMS = expand([Line(n, {"prompt": str(n), "model": f"/m{n % 2}"}) for n in range(1, 7)], {})[0]
A, B = ITEMS[0].key, ITEMS[1].key


def started(key: str, n: int) -> r.Started:
    return r.Started(key=key, n=n, run="r", at=0.0, output="x.mp4")


def done(key: str, n: int, **fields: Any) -> r.Done:
    return r.Done(key=key, n=n, run="r", at=0.0, output="x.mp4", sha256="0" * 64, bytes=1, **fields)


def failed(key: str, n: int) -> r.Failed:
    return r.Failed(key=key, n=n, run="r", at=0.0, code="worker_died", message="it died")


def released(key: str, n: int) -> r.Released:
    return r.Released(key=key, n=n, run="r", at=0.0, why="interrupted")


RECORDS = [
    r.RunStarted(run="r", pid=1, host="h", at=1.0, batch="b", items=2),
    started(A, 1),
    done(A, 2, recovery=({"error": "e", "action": "a", "outcome": "succeeded"},), timings={"load_s": 1.0}),
    failed(B, 2),
    released(B, 3),
    r.Paused(run="r", at=1.0, room=False),
    r.Learned(run="r", at=1.0, model="/m", fields={"vae_tiling": True, "offload": "group"}, key=A),
    r.RunEnded(run="r", at=1.0, why="ended"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_and_no_part_of_its_line_is_one(record: Any) -> None:
    line = r.encode(record)
    assert r.decode(line) == record
    for end in range(len(line)):
        with pytest.raises(r.BadLine):
            r.decode(line[:end])
    with pytest.raises(r.BadLine):
        r.decode(line.replace(b'"r"', b'"s"', 1))


def line_of(**fields: Any) -> bytes:
    text = json.dumps(fields).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def test_another_version_is_known_as_that_and_an_unknown_record_is_no_damage() -> None:
    with pytest.raises(r.OtherVersion, match="version 2"):
        r.decode_header(line_of(kind=r.JOURNAL_KIND, version=2, something="new"))
    for wrong in (line_of(kind="else", version=1), line_of(version=1), b"garbage\n", b""):
        with pytest.raises(r.BadLine):
            r.decode_header(wrong)
    with pytest.raises(r.UnknownRecord):
        r.decode(line_of(type="dreamt", key=A))


def test_the_last_record_of_an_item_counts_in_whatever_order_they_are_read() -> None:
    story = [started(A, 1), failed(A, 2), started(A, 3), done(A, 4)]
    for order in itertools.permutations(story):
        assert Progress(order).done(A) == story[-1]
    reopened = Progress([*story, released(A, 5)])
    assert reopened.done(A) is None and reopened.is_waiting(A) and reopened.next_number(A) == 6
    assert reopened.output(A) == "x.mp4"


def test_what_is_left_is_what_was_interrupted_first_and_then_model_by_model() -> None:
    progress = Progress([done(A, 2), started(ITEMS[5].key, 1), failed(ITEMS[3].key, 2)])
    assert [item.index for item in left_to_do(ITEMS, progress)] == [6, 2, 3, 5]
    assert [item.index for item in left_to_do(ITEMS, progress, retry_failed=True)] == [6, 2, 4, 3, 5]


def test_shards_divide_a_batch_without_rest() -> None:
    parts = [left_to_do(ITEMS, Progress(), shard=Shard(number, 4)) for number in range(1, 5)]
    assert sorted(item.index for part in parts for item in part) == [1, 2, 3, 4, 5, 6]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "1/0", "a/b", "1/4/2", "-1/4", "1/99999999"])
def test_no_part(text: str) -> None:
    with pytest.raises(ValueError, match="not a part"):
        parse_shard(text)


def test_the_rest_takes_as_long_as_the_last_ones_did() -> None:
    assert parse_shard("2/4") == Shard(2, 4)
    assert remaining_s([], 3, 1) is None and remaining_s([2.0], 0, 1) is None
    assert remaining_s([100.0, *[2.0] * 20], 10, 2) == 10.0
