"""The tables of classes are in step with the installed diffusers, read as text: this process imports no torch."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from wan_compat.policies.detection.classes import (
    DIFFUSERS_TRANSFORMERS,
    MODULAR_PIPELINES,
    NOT_IN_DIFFUSERS,
    OTHER_FAMILIES,
    OTHER_TRANSFORMERS,
    VAES,
    WAN_PIPELINES,
    family_of_class,
    role_of_class,
)
from wan_compat.policies.detection.configs import _CLASS_DEFAULTS
from wan_compat.policies.detection.rules import ROWS
from wan_compat.policies.variants import VARIANTS

spec = importlib.util.find_spec("diffusers")
pytestmark = pytest.mark.skipif(spec is None or spec.origin is None, reason="diffusers is not installed here")


def _package() -> Path:
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _exported() -> set[str]:
    return set(re.findall(r'"(\w+)"', (_package() / "__init__.py").read_text()))


def test_classes_said_to_be_in_diffusers_are_there_and_the_others_are_not():
    exported = _exported()
    assert exported >= DIFFUSERS_TRANSFORMERS.keys()
    assert not exported & OTHER_TRANSFORMERS.keys()
    assert exported >= WAN_PIPELINES.keys() - NOT_IN_DIFFUSERS
    assert exported >= MODULAR_PIPELINES
    assert not exported & NOT_IN_DIFFUSERS


def test_every_denoiser_and_autoencoder_of_diffusers_is_in_a_table():
    exported = _exported()
    helpers = {"TransformerTemporalModel", "UNetControlNetXSModel"}
    transformers = {
        name for name in exported if re.search(r"Transformer\w*Model$|UNet\w*Model$|DiT\w*Model$|Transformer$", name)
    }
    transformers = {name for name in transformers if "ControlNet" not in name} - helpers
    assert sorted(name for name in transformers if family_of_class(name) is None) == []
    autoencoders = {name for name in exported if re.search(r"^Autoencoder\w+$|^\w*AutoencoderKL$|^VQModel$", name)}
    assert sorted(autoencoders - VAES) == []


def test_class_defaults_are_those_of_the_signatures():
    sources = {path.name: path.read_text() for path in (_package() / "models" / "transformers").glob("*.py")}
    for name, defaults in _CLASS_DEFAULTS.items():
        source = next(text for text in sources.values() if f"class {name}(" in text)
        body = source[source.index(f"class {name}(") :]
        signature = body[body.index("def __init__(") : body.index("super().__init__()")]
        for field, value in defaults.items():
            found = re.search(rf"\b{field}: [^=]+= (\w+)", signature)
            assert found is not None, (name, field)
            assert found[1] == str(value), (name, field)


def test_tables_do_not_overlap_and_every_slug_of_the_rows_exists():
    assert not OTHER_FAMILIES.keys() & (DIFFUSERS_TRANSFORMERS.keys() | OTHER_TRANSFORMERS.keys())
    assert all(role_of_class(name) == "vae" for name in VAES)
    slugs = {slug for row in ROWS for slug in (*row.slugs, *row.named)}
    assert slugs <= VARIANTS.keys()
    # Every variant can be answered.
    assert VARIANTS.keys() - slugs == set()


def test_rows_that_fit_one_model_agree_only_where_files_cannot_tell():
    assert len(
        {(row.kind, row.size, row.channels, row.experts, row.image, row.last_image, row.reference) for row in ROWS}
    ) == len(ROWS)
