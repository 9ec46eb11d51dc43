"""A GGUF header is read to its end within limits, in torch's terms, or refused by name."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.assets.weight_files import file_fact, gguf_file, gguf_text
from wan_compat.protocol import errors
from wan_compat.supervisor.inspection import read_facts, read_gguf_header
from wan_compat.supervisor.inspection.gguf_header import MAX_ARRAY_TEXTS, MAX_KEY_VALUES, MAX_TENSORS

F32, F16, Q4_K, BF16 = 0, 1, 12, 30


def start(tensors: int, pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


@pytest.mark.parametrize("version", [2, 3])
def test_shapes_types_and_sizes_are_those_of_torch(tmp_path, version):
    path = tmp_path / "wan.gguf"
    pairs = [("general.architecture", 8, "wan"), ("general.file_type", 4, 15), ("ratio", 6, 0.5), ("flag", 7, True)]
    tensors = [("patch_embedding.weight", (2, 2, 1, 16, 96), F16, 12288), ("blocks.0.weight", (512, 3), Q4_K, 864)]
    path.write_bytes(gguf_file(pairs, [*tensors, ("scale", (), F32, 4)], version=version))
    read = read_gguf_header(file_fact(path))
    assert {name: (fact.dtype, fact.shape, fact.bytes) for name, fact in read.tensors.items()} == {
        "patch_embedding.weight": ("F16", (96, 16, 1, 2, 2), 12288),
        "blocks.0.weight": ("Q4_K", (3, 512), 864),
        "scale": ("F32", (), 4),
    }
    assert read.metadata == {"general.architecture": "wan", "general.file_type": 15, "ratio": 0.5, "flag": True}
    assert read.format == "gguf"


def test_every_kind_of_value_is_passed_over_to_the_tensors(tmp_path):
    scalars = [(f"s{kind}", kind, True if kind == 7 else 1) for kind in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12)]
    arrays = [(f"a{kind}", 9, (kind, [True] * 7 if kind == 7 else [1] * 7)) for kind in (0, 2, 5, 6, 7, 11, 12)]
    # Longer than any window, so that texts and names straddle its end.
    tokens = ("tokens", 9, (8, [f"token-{number}" for number in range(20_000)]))
    path = tmp_path / "all.gguf"
    path.write_bytes(gguf_file([*scalars, *arrays, tokens, ("none", 9, (8, []))], [("w", (4,), BF16, 8)]))
    read = read_gguf_header(file_fact(path))
    assert read.tensors["w"].bytes == 8
    assert set(read.metadata) == {name for name, _, _ in scalars}


def test_shape_that_comfyui_gguf_flattened_is_restored_only_if_it_fits(tmp_path):
    key = "comfy.gguf.orig_shape."
    pairs = [(f"{key}a", 9, (5, [8, 16, 1, 2, 2])), (f"{key}b", 9, (5, [3])), (f"{key}c", 9, (5, [-8, -64]))]
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_file(pairs, [(name, (64, 8), F16, 1024) for name in "abc"]))
    read = read_gguf_header(file_fact(path)).tensors
    assert [read[name].shape for name in "abc"] == [(8, 16, 1, 2, 2), (8, 64), (8, 64)]


def test_metadata_are_kept_within_limits(tmp_path):
    many = [(f"k{number}", 4, number) for number in range(1000)]
    pairs = [("prompt", 8, "é" * 5000), *many, ("general.alignment", 4, 64)]
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_file(pairs, [("v", (1,), F32, 4), ("w", (1,), F32, 4)], alignment=64))
    read = read_gguf_header(file_fact(path))
    assert read.metadata["prompt"] == "é" * 2000 and len(read.metadata) == 256


ONE = [("w", (4,), F32, 16)]
BAD = {
    "empty": b"",
    "magic only": b"GGUF",
    "no magic": b"GGML" + bytes(100),
    "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "version 1": start(0, 0, version=1),
    "version 4": start(0, 0, version=4),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "more tensors than bytes": start(5, 0),
    "too many tensors": start(MAX_TENSORS + 1, 0),
    "2**64-1 tensors": start(2**64 - 1, 0),
    "too many keys": start(0, MAX_KEY_VALUES + 1),
    "key of 2**63 bytes": start(0, 1) + struct.pack("<Q", 2**63),
    "key is no text": start(0, 1) + gguf_text(b"\xff\xfe") + struct.pack("<IB", 0, 1),
    "key twice": gguf_file([("a", 4, 1), ("a", 4, 2)], []),
    "value of unknown type": start(0, 1) + gguf_text("a") + struct.pack("<IQ", 13, 0),
    "text of 2**62 bytes": start(0, 1) + gguf_text("a") + struct.pack("<IQ", 8, 2**62),
    "array of arrays": start(0, 1) + gguf_text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(100),
    "array of 2**60 numbers": start(0, 1) + gguf_text("a") + struct.pack("<IIQ", 9, 4, 2**60) + bytes(100),
    "array of 2**60 texts": start(0, 1) + gguf_text("a") + struct.pack("<IIQ", 9, 8, 2**60) + bytes(100),
    "array of texts without an end": start(0, 1) + gguf_text("a") + struct.pack("<IIQ", 9, 8, MAX_ARRAY_TEXTS),
    "text in an array of 2**64-1 bytes": start(0, 1) + gguf_text("a") + struct.pack("<IIQQ", 9, 8, 2, 2**64 - 1),
    "tensor twice": gguf_file([], ONE * 2),
    "nine dimensions": gguf_file([], [("w", (1,) * 9, F32, 4)]),
    "2**32-1 dimensions": start(1, 0) + gguf_text("w") + struct.pack("<I", 2**32 - 1),
    "side of 2**63": gguf_file([], [("w", (2**63,), F32, 4)]),
    "removed type": gguf_file([], [("w", (32,), 4, 18)]),
    "unknown type": gguf_file([], [("w", (32,), 999, 18)]),
    "not whole blocks": gguf_file([], [("w", (255,), Q4_K, 144)]),
    "overlap": gguf_file([], [("v", (64,), F32, 32), ("w", (64,), F32, 256)]),
    "not aligned": gguf_file([], [("v", (1,), F32, 4), ("w", (1,), F32, 4)], alignment=4),
    "alignment of 0": gguf_file([("general.alignment", 4, 0)], ONE),
    "alignment of 48": gguf_file([("general.alignment", 4, 48)], ONE),
    "alignment is a text": gguf_file([("general.alignment", 8, "32")], ONE),
    "alignment is true": gguf_file([("general.alignment", 7, True)], ONE),
    "data missing": gguf_file([], ONE, data=False),
    "data cut off": gguf_file([], [("w", (1024,), F32, 4096)])[:-1],
}


@pytest.mark.parametrize("case", BAD)
def test_bad_header_is_refused_by_name(tmp_path, case):
    path = tmp_path / "model.gguf"
    path.write_bytes(BAD[case])
    with pytest.raises(errors.ModelCorrupt, match=r"model\.gguf"):
        read_gguf_header(file_fact(path))
    assert [problem.path for problem in read_facts(str(path)).problems] == ["model.gguf"]


def test_cut_off_data_still_tell_the_tensors(tmp_path):
    (tmp_path / "x.gguf").write_bytes(BAD["data cut off"])
    facts = read_facts(str(tmp_path))
    assert [problem.code for problem in facts.problems] == ["weights_truncated"]
    assert facts.weights["x.gguf"].tensors["w"].shape == (1024,)


@pytest.mark.parametrize("length", range(0, 180, 7))
def test_header_cut_off_anywhere_is_truncated_not_corrupt(tmp_path, length):
    whole = gguf_file([("a", 8, "text"), ("b", 9, (8, ["x", "yz"]))], [("w", (64,), F32, 256)])
    path = tmp_path / "x.gguf"
    path.write_bytes(whole[:length])
    assert [problem.code for problem in read_facts(str(path)).problems] == ["weights_truncated"]


@pytest.mark.parametrize("name", ["weights.bin", "model.pth", "x.model"])
def test_gguf_is_known_by_its_content_under_other_names(tmp_path, name):
    (tmp_path / name).write_bytes(gguf_file([], ONE))
    facts = read_facts(str(tmp_path))
    assert facts.weights[name].format == "gguf" and facts.problems == ()


def test_gguf_named_safetensors_is_read_and_called_what_it_is(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(gguf_file([], ONE))
    facts = read_facts(str(tmp_path))
    assert facts.weights["x.safetensors"].format == "gguf"
    assert [problem.code for problem in facts.problems] == ["weights_corrupt"]


NUMBERS = st.integers(0, 20) | st.sampled_from([2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=NUMBERS,
    pairs=NUMBERS,
    words=st.lists(NUMBERS.map(lambda n: struct.pack("<Q", n)) | st.integers(0, 41).map(lambda n: struct.pack("<I", n))
                   | st.binary(max_size=9) | st.text(max_size=4).map(gguf_text), max_size=25),
)  # fmt: skip
def test_any_bytes_are_a_header_or_a_typed_error(tmp_path, tensors, pairs, words):
    path = tmp_path / "x.gguf"
    path.write_bytes(start(tensors, pairs) + b"".join(words))
    try:
        read = read_gguf_header(file_fact(path))
    except errors.ModelCorrupt:
        return
    assert read.header_bytes + sum(fact.bytes for fact in read.tensors.values()) <= path.stat().st_size


NAME = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
TENSOR = st.tuples(
    st.lists(st.integers(0, 4), max_size=5), st.sampled_from([(0, 1, 4), (1, 1, 2), (8, 32, 34), (12, 256, 144)])
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.dictionaries(NAME, NAME, max_size=5), tensors=st.dictionaries(NAME, TENSOR, max_size=6))
def test_what_was_written_is_what_is_read(tmp_path, pairs, tensors):
    entries, expected = [], {}
    for name, (sides, (kind, block, size)) in tensors.items():
        sides = [(sides[0] if sides else 1) * block, *sides[1:]]
        elements = 1
        for side in sides:
            elements *= side
        entries.append((name, sides, kind, elements // block * size))
        expected[name] = (tuple(reversed(sides)), elements // block * size)
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_file([(f"k.{key}", 8, value) for key, value in pairs.items()], entries))
    read = read_gguf_header(file_fact(path))
    assert {name: (fact.shape, fact.bytes) for name, fact in read.tensors.items()} == expected
    assert read.metadata == {f"k.{key}": value for key, value in pairs.items()}
