"""Sizes and lengths as people write them."""

from __future__ import annotations

import pytest
import typer

from wan_compat.supervisor.cli.quantities import parse_bytes, parse_seconds, show_bytes, show_frames


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0), ("123", 123), ("8GB", 8_000_000_000), ("8gb", 8_000_000_000), ("512MiB", 512 << 20),
        ("2G", 2 << 30), ("1.5GiB", 3 << 29), (" 4 kB ", 4000), ("1TiB", 1 << 40),
        ("123456789012345678", 123456789012345678),
    ],
)  # fmt: skip
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("0.5", 0.5)])
def test_lengths(text: str, expected: float) -> None:
    assert parse_seconds(text) == expected


@pytest.mark.parametrize(
    "text", ["", "GB", "-1", "8XB", "1e9", "inf", "nan", "0x10", "8 GB GB", "1,5GB", "9" * 30, "٣GB"]
)
@pytest.mark.parametrize("parse", [parse_bytes, parse_seconds])
def test_anything_else_is_refused(text: str, parse: type) -> None:
    with pytest.raises(typer.BadParameter):
        parse(text)


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 kB"), (8123, "8 kB"), (2_500_000, "2 MB"), (24_600_000_000, "24.6 GB")]
)
def test_sizes_are_shown_in_decimal_units(count: int, shown: str) -> None:
    assert show_bytes(count) == shown


def test_one_frame_is_one() -> None:
    assert [show_frames(count) for count in (1, 5)] == ["1 frame", "5 frames"]
