"""What a WebP file says of itself, and files that lie."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wan_compat.supervisor.webp_container import read_webp


def webp(count: int, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 20, 33, 3)).astype(np.uint8)
    first, *rest = [Image.fromarray(frame) for frame in pixels]
    data = io.BytesIO()
    first.save(data, "WEBP", save_all=count > 1, append_images=rest, duration=125, **options)
    return data.getvalue()


@pytest.mark.parametrize(("count", "lossless"), [(1, False), (1, True), (4, False), (4, True)])
def test_size_frames_and_length_are_read(count, lossless, tmp_path):
    (tmp_path / "x.webp").write_bytes(webp(count, lossless=lossless))
    facts = read_webp(str(tmp_path / "x.webp"))
    assert facts is not None
    assert (facts.width, facts.height, facts.num_frames) == (33, 20, count)
    assert float(facts.duration) == (0.5 if count > 1 else 0)


@pytest.mark.parametrize("cut", [0, 4, 11, 12, 20, 40, 200, -1])
def test_a_file_that_was_cut_is_none(cut, tmp_path):
    (tmp_path / "x.webp").write_bytes(webp(3)[:cut])
    assert read_webp(str(tmp_path / "x.webp")) is None


def test_random_bytes_never_raise(tmp_path):
    random, good = np.random.default_rng(1), webp(3)
    path: Path = tmp_path / "x.webp"
    for _ in range(300):
        data = bytearray(good)
        for at in random.integers(0, len(data), 8):
            data[at] = random.integers(0, 256)
        path.write_bytes(bytes(data))
        read_webp(str(path))


def test_endless_empty_chunks_end(tmp_path):
    chunks = b"JUNK\0\0\0\0" * 200_000
    (tmp_path / "x.webp").write_bytes(b"RIFF" + len(chunks + b"WEBP").to_bytes(4, "little") + b"WEBP" + chunks)
    assert read_webp(str(tmp_path / "x.webp")) is None
