"""Tables and arguments are read from source text; what cannot be read gives nothing."""

from __future__ import annotations

import pytest

from wan_compat.policies.python_source import (
    MAX_SOURCE_BYTES,
    class_definition,
    documented_inputs,
    offered_names,
    parse,
    version_of,
)


def offered(source: str) -> dict[str, str]:
    tree = parse(source)
    assert tree is not None
    return offered_names(tree)


@pytest.mark.parametrize(
    "source",
    [
        "_import_structure = {'m': ['X']}",
        "_import_structure: dict = {'m': ['X']}",
        "_import_structure['m'] = ['X']",
        "_import_structure['m'] += ['X']",
        "_import_structure['m'].append('X')",
        "_import_structure['m'].extend(('X', 'Y'))",
        "_import_structure.update({'m': ['X']})",
        "try:\n    a()\nexcept E:\n    pass\nelse:\n    _import_structure['m'] = ['X']",
        "if a:\n    pass\nelse:\n    try:\n        b()\n    finally:\n        _import_structure['m'] = ['X']",
        "if a:\n    from .m import X",
        "from .m import Z as X",
    ],
)
def test_every_form_of_the_table_is_understood(source: str) -> None:
    assert offered(source)["X"] == "m"


@pytest.mark.parametrize(
    "source",
    [
        "_import_structure['utils.dummy_torch_objects'] = ['X']",
        "from .utils.dummy_pt_objects import X",
        "_import_structure['m'] = [name for name in dir(x)]",
        "_import_structure[computed()] = ['X']",
        "def f():\n    _import_structure['m'] = ['X']",
        "other['m'] = ['X']",
        "from ..m import X",
        "from torch import X",
        "_import_structure.clear()",
        "{**a}",
    ],
)
def test_dummies_and_computed_names_are_not_offered(source: str) -> None:
    assert "X" not in offered(source)


def test_the_first_place_of_a_name_counts() -> None:
    assert offered("_import_structure['a'] = ['X']\n_import_structure['b'] = ['X']") == {"X": "a"}


@pytest.mark.parametrize(
    "source", ["def", "\0", "(" * 10_000, "x = 1\n" + "#" * MAX_SOURCE_BYTES], ids=["syntax", "nul", "deep", "large"]
)
def test_what_cannot_be_parsed_gives_nothing(source: str) -> None:
    assert parse(source) is None


def test_arguments_are_told_apart_by_their_defaults() -> None:
    tree = parse(
        "class P(A, b.C):\n    def __call__(self, image, /, prompt=None, *, seed, size=(1, 2), **kwargs): ...\n"
    )
    assert tree is not None
    definition = class_definition(tree, "P")
    assert definition is not None and definition.call is not None
    assert definition.bases == ("A", "C")
    assert definition.init is None
    assert definition.call.required == ("image", "seed")
    assert definition.call.optional == {"prompt": "None", "size": "(1, 2)"}
    assert definition.call.accepts_more
    assert class_definition(tree, "Q") is None


def test_a_default_is_text_of_bounded_length() -> None:
    tree = parse(f"class P:\n    def __call__(self, a={'-' * 900}1, b='{'x' * 900}'): ...\n")
    assert tree is not None
    definition = class_definition(tree, "P")
    assert definition is not None and definition.call is not None
    assert all(len(text) <= 80 for text in definition.call.optional.values())


def test_version_is_a_plain_string_or_nothing() -> None:
    for source, version in (("__version__ = '1.2'", "1.2"), ("__version__ = read()", None), ("x = 1", None)):
        tree = parse(source)
        assert tree is not None
        assert version_of(tree) == version


DOCUMENTED = """
Blocks.

  Components:
      vae (`AutoencoderKLWan`)

  Inputs:
      prompt (`str`):
          The prompt (`x`): not an input.
      height (`int`, *optional*, defaults to 480):
          TODO.

      latents (`Tensor | NoneType`, *optional*):
          TODO.
      **denoiser_input_fields (`None`, *optional*):
          more

  Outputs:
      videos (`list`):
          The videos.
"""


def test_inputs_of_modular_blocks_are_read_from_their_docstring() -> None:
    inputs = documented_inputs(DOCUMENTED)
    assert inputs is not None
    assert inputs.required == ("prompt",)
    assert inputs.optional == {"height": "480", "latents": "None"}
    assert inputs.accepts_more
    assert documented_inputs("No section here.") is None


def test_a_hostile_docstring_costs_linear_time() -> None:
    assert documented_inputs("Inputs:\n" + " \n" * 200_000 + " " * 200_000 + "(") is not None
