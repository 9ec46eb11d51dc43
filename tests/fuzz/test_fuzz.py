"""The fuzz targets in the suite: a bounded run of each, and the largest inputs that are permitted to be tried."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import NAMES
from tests.fuzz.targets import TARGETS, check
from wan_compat.protocol.codec import MAX_ITEMS, MAX_MESSAGE_BYTES
from wan_compat.supervisor.inspection.json_document import MAX_JSON_BYTES
from wan_compat.supervisor.inspection.safetensors_header import MAX_HEADER_BYTES

REPOSITORY = Path(__file__).resolve().parents[2]

MUTATIONS = st.lists(
    st.tuples(st.integers(0, 4096), st.integers(0, 16), st.binary(max_size=16), st.integers(1, 40)), max_size=8
)


def test_names_of_the_command_are_the_targets():
    assert set(NAMES) == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_accepted(name):
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_mutated_and_random_input_is_accepted_or_a_typed_refusal(name, data):
    target = TARGETS[name]
    seed = bytearray(data.draw(st.sampled_from(list(target.seeds())) | st.binary(max_size=300)))
    for position, length, replacement, times in data.draw(MUTATIONS):
        position %= len(seed) + 1
        seed[position : position + length] = replacement * times
    check(target, bytes(seed))


# Those that read what a worker, a hub or another program sends, straight from the wire; all of them: python -m tests.fuzz
GUIDED = ("codec", "states", "zmtp", "safetensors", "control")


@pytest.fixture(scope="module")
def guided_run(tmp_path_factory):
    """A short run of the command over some targets: where it kept findings, how it ended, what it said."""
    folder = tmp_path_factory.mktemp("fuzz")
    command = [sys.executable, "-m", "tests.fuzz", *GUIDED, "--seconds", "10", "--folder", str(folder)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=110, check=False)
    return folder, ended


@pytest.mark.parametrize("name", GUIDED)
def test_guided_run_is_clean(name, guided_run):
    folder, ended = guided_run
    assert f"{name}: clean" in ended.stdout.splitlines(), ended.stdout[-2000:] + ended.stderr[-4000:]
    assert os.listdir(folder / name / "corpus") and os.listdir(folder / name / "findings") == []
    assert ended.returncode == 0, ended.stdout[-2000:]


def header(raw: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(raw)) + raw + data


def filled(piece: bytes, length: int, start: bytes, end: bytes) -> bytes:
    return start + piece * ((length - len(start) - len(end)) // len(piece)) + end


def entries(count: int) -> bytes:
    place = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    return json.dumps({f"t{index}": place for index in range(count)}).encode()


LARGEST = {
    "codec: one string": ("codec", b"\x93\x01\x01\xdb" + (MAX_MESSAGE_BYTES - 8).to_bytes(4, "big") + b"x" * 262_000),
    "codec: full lists": (
        "codec",
        b"\x93\x01\x01\xdc\x00\x0f" + (b"\xdc" + MAX_ITEMS.to_bytes(2, "big") + b"\xc0" * MAX_ITEMS) * 15,
    ),
    "codec: long keys": ("codec", b"\x93\x01\x01\xdf" + (2).to_bytes(4, "big") + (b"\xda\xff\xff" + b"k" * 65535) * 4),
    "json: brackets": ("json", filled(b"[", MAX_JSON_BYTES, b'{"a":', b"}")),
    "json: empty lists": ("json", filled(b"[],", MAX_JSON_BYTES, b'{"a":[', b"0]}")),
    "json: empty maps": ("json", filled(b"{},", MAX_JSON_BYTES, b'{"a":[', b"0]}")),
    "json: numbers": ("json", filled(b"1,", MAX_JSON_BYTES, b'{"a":[', b"0]}")),
    "json: digits": ("json", filled(b"9", MAX_JSON_BYTES, b'{"a":', b"}")),
    "json: one string": ("json", filled(b"x", MAX_JSON_BYTES, b'{"a":"', b'"}')),
    "json: quotes": ("json", filled(b'\\"', MAX_JSON_BYTES, b'{"a":"', b'"}')),
    "json: white": ("json", filled(b" ", MAX_JSON_BYTES, b"{", b"}")),
    "json: maps of one": ("json", filled(b'{"a":1},', MAX_JSON_BYTES, b'{"a":[', b"0]}")),
    "json: surrogate": ("json", b'{"a":"\\ud800"}'),
    "json: surrogate key": ("json", b'{"\\udfff":1}'),
    "json: digits of a float": ("json", b'{"a":1e' + b"9" * 1000 + b"}"),
    "safetensors: brackets": ("safetensors", header(filled(b"[", MAX_HEADER_BYTES, b'{"a":', b"}"))),
    "safetensors: empty lists": ("safetensors", header(filled(b"[],", MAX_HEADER_BYTES, b'{"a":[', b"0]}"))),
    "safetensors: empty maps": ("safetensors", header(filled(b"{},", MAX_HEADER_BYTES, b'{"a":[', b"0]}"))),
    "safetensors: numbers": ("safetensors", header(filled(b"1,", MAX_HEADER_BYTES, b'{"a":[', b"0]}"))),
    "safetensors: metadata": ("safetensors", header(filled(b"x", MAX_HEADER_BYTES, b'{"__metadata__":{"a":"', b'"}}'))),
    "safetensors: white": ("safetensors", header(filled(b" ", MAX_HEADER_BYTES, b"{", b"}"))),
    "safetensors: many": ("safetensors", header(entries(15_000))),
    "safetensors: too many": ("safetensors", header(entries(100_000))),
}


@pytest.mark.parametrize("name", LARGEST)
def test_largest_input_costs_a_bounded_time_and_memory(name, tmp_path):
    # In a process of its own: the high-water mark of memory never goes down.
    target, data = LARGEST[name]
    (tmp_path / "input").write_bytes(data)
    command = [sys.executable, "-m", "tests.fuzz", target, "--replay", str(tmp_path / "input")]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=90, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
