"""A zip's directory is read within limits, agrees with the standard library, and lies are found."""

from __future__ import annotations

import io
import struct
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_compat.policies.scan import zip_directory
from wan_compat.policies.scan.zip_directory import BadZip, data_offset, find_directory, judge_entries, read_directory


def zipped(*entries, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def read(raw):
    place = find_directory(raw[-zip_directory.TAIL_BYTES :], len(raw))
    if place is None:
        return None, ()
    return place, read_directory(raw[place.offset : place.offset + place.length], place)


def judged(raw):
    place, entries = read(raw)
    assert place is not None
    return {item.rule for item in judge_entries(entries, place)}


def test_entries_are_those_of_the_standard_library():
    raw = zipped(("a/b.txt", b"x" * 100), ("ä.bin", b"y" * 5000), method=zipfile.ZIP_DEFLATED)
    _, entries = read(raw)
    with zipfile.ZipFile(io.BytesIO(raw)) as theirs:
        expected = [
            (item.filename, item.file_size, item.compress_size, item.header_offset) for item in theirs.infolist()
        ]
    assert [(item.name, item.unpacked, item.packed, item.offset) for item in entries] == expected
    assert judged(raw) == set()
    for entry in entries:
        start = data_offset(entry, raw[entry.offset : entry.offset + 200])
        assert len(raw[start : start + entry.packed]) == entry.packed


def test_bytes_before_the_zip_shift_it():
    inside = zipped(("a", b"data"))
    place, entries = read(b"prefix" + inside)
    assert place is not None and place.shift == 6 and entries[0].offset == 6


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "..\\a", "C:/x"])
def test_names_that_lead_out_are_found(name):
    assert "archive-escape" in judged(zipped((name, b"x")))


def test_links_are_found():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert "archive-escape" in judged(buffer.getvalue())


def test_bombs_are_found():
    assert "archive-bomb" in judged(zipped(("zeros", bytes(50 << 20)), method=zipfile.ZIP_DEFLATED))


def test_entries_that_share_their_bytes_are_found():
    raw = bytearray(zipped(("a", b"x" * 50), ("b", b"x" * 50)))
    place, _ = read(bytes(raw))
    assert place is not None
    second = raw.index(b"PK\1\2", place.offset + 4)
    raw[second + 42 : second + 46] = struct.pack("<I", 10)  # the second one begins within the first
    assert "archive-bomb" in judged(bytes(raw))


def test_names_that_are_there_twice_are_found():
    with pytest.warns(UserWarning):
        raw = zipped(("a", b"one"), ("a", b"two"))
    assert "archive-lies" in judged(raw)


def test_a_name_that_differs_before_the_data_is_a_lie():
    raw = zipped(("safe.txt", b"data"))
    raw = raw.replace(b"safe.txt", b"evil.pkl", 1)
    _, entries = read(raw)
    with pytest.raises(BadZip, match=r"evil\.pkl"):
        data_offset(entries[0], raw[entries[0].offset : entries[0].offset + 100])


@pytest.mark.parametrize("change", ["more entries", "beyond", "cut", "many"])
def test_end_records_that_lie_are_refused(change):
    raw = bytearray(zipped(("a", b"x"), ("b", b"y")))
    end = raw.rindex(b"PK\5\6")
    if change == "more entries":
        struct.pack_into("<2H", raw, end + 8, 3, 3)
    elif change == "beyond":
        struct.pack_into("<L", raw, end + 16, 1 << 30)
    elif change == "cut":
        struct.pack_into("<L", raw, end + 12, struct.unpack_from("<L", raw, end + 12)[0] - 5)
    else:
        struct.pack_into("<2H", raw, end + 8, 60_000, 60_000)
    with pytest.raises(BadZip):
        read(bytes(raw))


def test_large_zips_say_their_numbers_in_other_records():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("a", "w", force_zip64=True) as entry:
        entry.write(b"data")
    _, entries = read(buffer.getvalue())
    assert (entries[0].packed, entries[0].unpacked) == (4, 4)


def test_other_records_of_a_small_zip_are_passed_over():
    """As torch.save writes them."""
    raw = zipped(("archive/data.pkl", b"x"))
    end = raw.rindex(b"PK\5\6")
    _, _, _, here, entries, length, offset, _ = struct.unpack_from("<4s4H2LH", raw, end)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, here, entries, length, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    place, found = read(raw[:end] + record + locator + raw[end:])
    assert place is not None and place.shift == 0
    assert [entry.name for entry in found] == ["archive/data.pkl"]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 200), st.binary(max_size=8))
def test_any_bytes_are_a_zip_or_none_or_refused(junk, position, change):
    base = bytearray(zipped(("a.txt", b"x" * 20), ("b/c.pkl", b"y" * 20)))
    base[position % len(base) :][: len(change)] = change
    base[position % len(base) : position % len(base) + len(change)] = change
    for raw in (junk, bytes(base), junk + bytes(base)):
        try:
            place, entries = read(raw)
            if place is not None:
                list(judge_entries(entries, place))
                for entry in entries:
                    data_offset(entry, raw[entry.offset : entry.offset + 100] if entry.offset >= 0 else b"")
        except BadZip:
            pass
