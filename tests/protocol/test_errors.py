"""Errors carry code, cause and remedy; what a worker says about itself is bounded and cleaned."""

import inspect

import pytest

from wan_compat.protocol import errors

ALL = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.WanCompatError)]
EXIT_CODES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 124, 130, 143}


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_error_has_a_code_a_title_and_a_documented_exit_code(cls):
    assert errors.error_class(cls.code) is cls or cls is errors.WanCompatError
    assert cls.title
    assert cls.exit_code in EXIT_CODES


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_the_drawn_tree_names_every_error_with_its_code_and_exit_code(cls):
    if cls is errors.WanCompatError:
        return
    line = next(line for line in (errors.__doc__ or "").splitlines() if f"─ {cls.__name__} " in line)
    assert f" {cls.code} " in line
    assert f" {cls.exit_code}" in line


def test_a_code_cannot_be_taken_twice():
    with pytest.raises(TypeError, match="is taken"):

        class Other(errors.WanCompatError):
            code = "worker_died"


@pytest.mark.parametrize("code", ["job_cancelled", "refused_by_policy", "sandbox_unavailable", "nonsense", ""])
def test_worker_cannot_report_what_is_not_its_to_report(code):
    assert type(errors.from_worker(code, "x")) is errors.GenerationFailed


def test_worker_text_is_cleaned_and_bounded():
    hostile = "\x1b]0;owned\x07\u202egnp.exe\u200b\r" + "x" * 10_000
    error = errors.from_worker("model_corrupt", hostile, [hostile] * 50)
    assert isinstance(error, errors.ModelCorrupt)
    assert len(error.message) <= errors.MAX_MESSAGE_CHARS
    assert len(error.fixes) == errors.MAX_FIXES
    for text in (error.message, *error.fixes):
        assert not any(char in text for char in "\x1b\x07\u202e\u200b\r")


def test_clean_text_keeps_language_and_lines():
    text = "Fuchs läuft\n狐が走る 🦊 é"
    assert errors.clean_text(text) == text


def test_error_document_has_the_promised_fields():
    document = errors.MemoryExceeded("too much", hint="use less", fixes=["or more"]).to_json()["error"]
    assert document["code"] == "memory_exceeded"
    assert document["fixes"] == ["use less", "or more"]
    assert set(document) >= {"code", "title", "message", "fixes", "diagnostic"}


def test_no_text_of_the_tree_advises_remote_code():
    assert "trust_remote_code=True" not in inspect.getsource(errors)
