"""A safetensors header says what a loader would map, or is refused before anything is allocated."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.assets.weight_files import file_fact, safetensors_file
from wan_compat.protocol import errors
from wan_compat.supervisor.inspection import read_facts, read_safetensors_header

BAD_HEADERS = {
    "empty file": b"",
    "seven bytes": b"1234567",
    "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "header of 0 bytes": struct.pack("<Q", 0),
    "header is no json": safetensors_file(b"nonsense"),
    "header is a list": safetensors_file([]),
    "entry is a number": safetensors_file({"w": 5}),
    "unknown type": safetensors_file({"w": {"dtype": "F128", "shape": [], "data_offsets": [0, 16]}}, b"x" * 16),
    "type is a list": safetensors_file({"w": {"dtype": ["F32"], "shape": [], "data_offsets": [0, 4]}}, b"x" * 4),
    "negative shape": safetensors_file({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"x" * 4),
    "shape of bools": safetensors_file({"w": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"x" * 4),
    "shape overflows": safetensors_file(
        {"w": {"dtype": "F32", "shape": [2**40, 2**40, 2**40], "data_offsets": [0, 4]}}, b"x" * 4
    ),
    "shape of floats": safetensors_file({"w": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, b"x" * 4),
    "too many dimensions": safetensors_file(
        {"w": {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}}, b"x" * 4
    ),
    "three offsets": safetensors_file({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, b"x" * 4),
    "offsets backwards": safetensors_file({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"x" * 4),
    "size differs from shape": safetensors_file(
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"x" * 4
    ),
    "beyond the end": safetensors_file({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"x" * 4),
    "bytes that belong to nobody": safetensors_file(
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"x" * 9
    ),
    "hole": safetensors_file({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"x" * 8),
    "overlap": safetensors_file(
        {
            "v": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        },
        b"x" * 8,
    ),
    "same tensor twice": safetensors_file(
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"x" * 4,
    ),
    "pickle inside": b"\x80\x04\x95" + b"x" * 100,
    "zip archive": b"PK\x03\x04" + b"\0" * 100,
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_safetensors_header_is_refused_before_any_allocation(tmp_path, case):
    path = tmp_path / "model.safetensors"
    path.write_bytes(BAD_HEADERS[case])
    with pytest.raises(errors.ModelCorrupt, match=r"model\.safetensors"):
        read_safetensors_header(file_fact(path))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["F32", "w", "dtype"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "w", "__metadata__"]), inner, max_size=4),
    max_leaves=15,
).map(safetensors_file))  # fmt: skip
def test_any_bytes_are_a_header_or_a_typed_error(tmp_path, data):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    try:
        read_safetensors_header(file_fact(path))
    except errors.ModelCorrupt:
        pass


def one(dtype, shape, size):
    return safetensors_file({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}, bytes(size))


@pytest.mark.parametrize(("dtype", "shape", "size"), [
    ("BOOL", [3], 3), ("F4", [2, 3], 3), ("F6_E2M3", [4], 3), ("F6_E3M2", [8], 6), ("F8_E4M3", [5], 5),
    ("F8_E5M2", [5], 5), ("F8_E8M0", [5], 5), ("F8_E4M3FNUZ", [5], 5), ("F8_E5M2FNUZ", [5], 5), ("U16", [2], 4),
    ("BF16", [2, 2], 8), ("U32", [1], 4), ("C64", [2], 16), ("U64", [], 8), ("I64", [0, 9], 0),
])  # fmt: skip
def test_every_type_of_safetensors_0_8_has_its_size(tmp_path, dtype, shape, size):
    path = tmp_path / "x.safetensors"
    path.write_bytes(one(dtype, shape, size))
    read = read_safetensors_header(file_fact(path)).tensors["w"]
    assert (read.dtype, list(read.shape), read.bytes) == (dtype, shape, size)


@pytest.mark.parametrize(("dtype", "shape", "size"), [("F4", [3], 1), ("F6_E2M3", [3], 2), ("F4", [3], 2)])
def test_tensor_that_ends_within_a_byte_is_refused(tmp_path, dtype, shape, size):
    path = tmp_path / "x.safetensors"
    path.write_bytes(one(dtype, shape, size))
    with pytest.raises(errors.ModelCorrupt, match="within a byte"):
        read_safetensors_header(file_fact(path))


def test_metadata_are_kept_within_limits(tmp_path):
    path = tmp_path / "lora.safetensors"
    metadata = {"format": "pt", "captions": "x" * 100_000, "k" * 600: "v"} | {f"n{i}": "v" for i in range(1000)}
    path.write_bytes(safetensors_file({"__metadata__": metadata}))
    read = read_safetensors_header(file_fact(path))
    assert read.metadata["format"] == "pt"
    assert len(read.metadata["captions"]) == 2000
    assert len(read.metadata) == 256 and max(map(len, read.metadata)) < 600
    assert read.header_bytes == path.stat().st_size - 8


@pytest.mark.parametrize("metadata", [[], "x", {"a": 1}, {"a": None}, {"a": {"b": "c"}}])
def test_metadata_that_safetensors_would_refuse_are_refused(tmp_path, metadata):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_file({"__metadata__": metadata}))
    with pytest.raises(errors.ModelCorrupt, match="metadata"):
        read_safetensors_header(file_fact(path))


CUT_OFF = {
    "empty": 0,
    "within the length": 5,
    "after the length": 8,
    "within the header": 40,
    "within the data": -4,
}


@pytest.mark.parametrize("case", CUT_OFF)
def test_cut_off_file_is_named_so_and_tells_its_tensors_if_the_header_is_whole(tmp_path, case):
    whole = one("F32", [4, 4], 64)
    (tmp_path / "x.safetensors").write_bytes(whole[: CUT_OFF[case]])
    facts = read_facts(str(tmp_path))
    assert [problem.code for problem in facts.problems] == ["weights_truncated"]
    assert ("x.safetensors" in facts.weights) == (case == "within the data")
    with pytest.raises(errors.ModelCorrupt, match="cut off"):
        read_safetensors_header(file_fact(tmp_path / "x.safetensors"))


def test_no_byte_of_the_data_is_read(tmp_path):
    # A sparse file of a size that could not be read in the time, nor held.
    head = safetensors_file({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4 << 40]}})
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + (4 << 40))
    assert read_safetensors_header(file_fact(tmp_path / "x.safetensors")).tensors["w"].bytes == 4 << 40
