"""The pictures of the monitor are what the program draws now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.monitor_screenshots import IMAGES, pictures

PICTURES = pictures()


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_is_drawn_and_refers_to_nothing_outside(name: str) -> None:
    document = PICTURES[name]
    assert (IMAGES / name).read_text() == document, "python -m tools.monitor_screenshots writes them anew"
    addresses = set(re.findall(r"(?:https?:)?//[^\"' <)]+", document))
    assert addresses <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}  # a name, and a comment
    assert not re.search(r"url\((?!#)", document)  # within the document only


def test_every_picture_is_shown_on_the_page(repository: Path) -> None:
    page = (repository / "docs" / "monitor.md").read_text()
    assert [name for name in PICTURES if f"(images/{name})" not in page] == []
    assert {path.name for path in IMAGES.glob("monitor*.svg")} == set(PICTURES)
