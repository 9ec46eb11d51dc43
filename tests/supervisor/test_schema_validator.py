"""One model_index.json against its schema: every way in which it can be wrong becomes words, never an exception."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.policies.test_model_index import A14B, T2V
from wan_compat.supervisor.schema_validator import MAX_ERRORS, SchemaValidator


def validate(folder: Path, content: bytes | dict[str, object]):
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "model_index.json").write_bytes(raw)
    return SchemaValidator().validate_model_index(str(folder / "model_index.json"))


def test_a_sound_index_is_valid(tmp_path: Path) -> None:
    result = validate(tmp_path, A14B)
    assert result.is_valid and result.schema is not None and result.schema.class_name == "WanPipeline"
    assert (result.errors, result.warnings, result.suggested_fixes) == ([], [], [])
    assert SchemaValidator().validate_model_index(str(tmp_path)).is_valid, "the folder will do"


def test_another_familys_index_is_valid_with_a_warning(tmp_path: Path) -> None:
    result = validate(tmp_path, {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]})
    assert result.is_valid and "another family" in result.warnings[0]


def test_an_error_comes_with_its_fix(tmp_path: Path) -> None:
    result = validate(tmp_path, T2V | {"boundary_ratio": 0.9})
    assert not result.is_valid and result.schema is not None
    assert result.errors == ["model_index.json: boundary_ratio is 0.9, but there is no transformer_2 to switch to."]
    assert "--repair" in result.suggested_fixes[0]


def test_wrong_types_are_told_by_field_and_value(tmp_path: Path) -> None:
    result = validate(tmp_path, T2V | {"vae": "AutoencoderKLWan", "boundary_ratio": "half"})
    assert not result.is_valid and result.schema is None and len(result.errors) == 2
    assert any("vae has 'AutoencoderKLWan'" in error for error in result.errors)
    assert any("boundary_ratio has 'half'" in error for error in result.errors)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"a": 1, "a": 2}',
        b"\xef\xbb\xbf{}",
        b"{" * 100_000,
        b'{"a": ' + b"[" * 5000,
        b'"\\ud800"',
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"x" * (5 << 20),
    ],
)
def test_no_content_raises(tmp_path: Path, content: bytes) -> None:
    result = validate(tmp_path, content)
    assert not result.is_valid and result.errors and result.suggested_fixes


@pytest.mark.timeout(5)
def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "absent.json", tmp_path, tmp_path / "fifo", "a\0b", "/dev/zero"):
        result = SchemaValidator().validate_model_index(str(path))
        assert not result.is_valid and result.schema is None and result.errors, path


def test_text_of_the_repository_is_cleaned_and_bounded(tmp_path: Path) -> None:
    result = validate(tmp_path, T2V | {"_class_name": "\x1b[31mEvil\u202e" + "x" * 200})
    assert result.errors and not any("\x1b" in error or "\u202e" in error for error in result.errors)
    errors = SchemaValidator().generate_schema_errors([f"error {number}" for number in range(MAX_ERRORS + 5)])
    assert len(errors) == MAX_ERRORS + 1 and errors[-1] == "model_index.json: and 5 more."
