"""Output names: whatever a template or a prompt says, one visible file in the folder, or a refusal."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_compat.policies.batch import names

VALUES = {
    "index": 7,
    "line": 9,
    "seed": 3,
    "slug": "A red fox!",
    "model": "org/Wan 2.1",
    "key": "abcdef01",
    "width": None,
}


def test_a_template_makes_a_name() -> None:
    assert names.render("{index:04}-{slug}-{seed}", VALUES) == "0007-a-red-fox-3"
    assert names.render("{model}_{key}_{width}{{x}}", VALUES) == "org-wan-2-1_abcdef01_auto{x}"


@pytest.mark.parametrize(
    "template",
    [
        "",
        "x" * 201,
        "{prompt}",
        "{index.__class__}",
        "{index[0]}",
        "{index!r}",
        "{index:9999}",
        "{index:x}",
        "{index:<40}",
        "{slug:50}",
        "{}",
        "{0}",
        "{index",
        "a}b",
        "{seed:{index}}",
    ],
)
def test_a_template_has_fixed_fields_and_no_way_to_anything_else(template: str) -> None:
    with pytest.raises(ValueError, match=r"field|template|characters|written|writes"):
        names.check_template(template)


NO_NAMES = [
    "",
    ".",
    "..",
    "../x.mp4",
    "a/b.mp4",
    "/etc/passwd.mp4",
    "a\\b.mp4",
    "c:x.mp4",
    "x\0.mp4",
    "x\n.mp4",
    "\x1b[31m.mp4",
    "\u202egnp.mp4",
    "a\u200bb.mp4",
    ".hidden.mp4",
    "-rf.mp4",
    "~x.mp4",
    " x.mp4",
    "x.mp4 ",
    "x.",
    "con",
    "CON.mp4",
    "nul.tar.mp4",
    "LPT1.mp4",
    "com².mp4",
    "x" * 197 + ".mp4",
    "é" * 100 + ".mp4",
    "e\u0301.mp4",
    "summary.json",
    "Report.HTML",
    "x.mp4.json",
    "x.part",
    "*.mp4",
]


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_such_a_name_is_no_outputs(name: str) -> None:
    assert names.objection(name) is not None


@pytest.mark.parametrize(
    "name", ["0001-a-red-fox-3.mp4", "Ein grüner Fuchs.webm", "frames", "console.mp4", "x" * 196 + ".mp4"]
)
def test_such_a_name_is_one(name: str) -> None:
    assert names.objection(name) is None


@given(st.text(max_size=300), st.integers(0, 2**63 - 1))
def test_no_prompt_leads_out_of_the_folder(prompt: str, seed: int) -> None:
    name = names.with_suffix(names.render(names.DEFAULT_TEMPLATE, VALUES | {"slug": prompt, "seed": seed}), None)
    assert names.objection(name) is None
    assert os.path.dirname(os.path.normpath(os.path.join("/out", name))) == "/out"


@given(st.text(max_size=80))
def test_no_text_of_a_template_leads_out_of_the_folder(template: str) -> None:
    try:
        names.check_template(template)
    except ValueError:
        return
    name = names.with_suffix(names.render(template, VALUES), None)
    if names.objection(name) is None:
        assert os.path.dirname(os.path.normpath(os.path.join("/out", name))) == "/out"
        assert not name.startswith((".", "-")) and name.isprintable()


@pytest.mark.parametrize(
    ("name", "form", "whole"),
    [("a", None, "a.mp4"), ("a.webm", None, "a.webm"), ("a", "gif", "a.gif"), ("a", "png", "a"), ("a.b", None, "a.b.mp4"), ("a", "nonsense", "a.mp4")],
)  # fmt: skip
def test_a_name_gets_the_ending_of_its_format(name: str, form: str | None, whole: str) -> None:
    assert names.with_suffix(name, form) == whole


def test_names_that_are_one_file_elsewhere_are_the_same() -> None:
    assert set(names.beside("Fox.mp4")) & set(names.beside("FOX.mp4.json".removesuffix(".json")))
    assert set(names.beside("a.mp4")) & set(names.beside("a.mp4.poster.png"))
    assert not set(names.beside("a.mp4")) & set(names.beside("b.mp4"))
