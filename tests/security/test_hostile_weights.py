"""T12: pickles that attack who opens them, given to `convert`. Each attack works on who unpickles, which is shown first."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.assets.original_layout import original_model
from wan_compat import Supervisor
from wan_compat.protocol import errors

VAE = "Wan2.1_VAE.pth"


class Runs:
    """Asks whoever unpickles it to call a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def packed(content: Any) -> bytes:
    return pickle.dumps(content, protocol=2)  # torch's own; the weights-only reader knows no opcode of later ones


def in_zip(payload: bytes, name: str = "archive/data.pkl") -> bytes:
    """Return what torch takes for a file of its own: a zip, stored, with the pickle under this name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, payload)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
    return buffer.getvalue()


def touch(canary: Path) -> Runs:
    return Runs(os.system, f"touch {canary}")


# What a file holds, from the canary that it shall touch.
PAYLOADS = {
    "a call instead of weights": touch,
    "a call among the weights": lambda canary: {"encoder.conv1.weight": 1, "x": [{"y": (touch(canary),)}]},
    "a call as a name": lambda canary: {touch(canary): 1},
    "eval": lambda canary: Runs(eval, f"__import__('pathlib').Path({str(canary)!r}).touch()"),
    "exec": lambda canary: Runs(exec, f"import pathlib; pathlib.Path({str(canary)!r}).touch()"),
    "a class of the standard library": lambda canary: Runs(Path(canary).touch),
}


@pytest.fixture
def original(tmp_path: Path) -> Path:
    folder = tmp_path / "original"
    shutil.copytree(original_model("t2v")[0], folder)
    return folder


def refused(supervisor: Supervisor, original: Path) -> errors.WanCompatError:
    """Convert, and return the error; nothing may have been written."""
    output = original.parent / "converted"
    with pytest.raises(errors.WanCompatError) as caught:
        supervisor.convert(model=str(original), output=str(output))
    assert sorted(path.name for path in original.parent.iterdir()) == ["original"]
    return caught.value


@pytest.mark.parametrize("make", PAYLOADS.values(), ids=PAYLOADS)
def test_pickle_that_calls_is_refused_and_its_call_is_never_made(supervisor, original, make):
    canary = original.parent / "canary"
    data = packed(make(canary))
    # Whoever unpickles it is attacked. (A call that gives no hashable name ends in an error, after it was made.)
    pickle.loads(data)
    assert canary.exists()
    canary.unlink()

    for written in (in_zip(data), data):
        (original / VAE).write_bytes(written)
        error = refused(supervisor, original)
        assert isinstance(error, errors.ModelInvalid), error
        assert VAE in error.message and "weights_only" not in error.message
        assert not canary.exists()


def test_refusal_names_what_the_pickle_asks_for(supervisor, original):
    (original / VAE).write_bytes(in_zip(packed(touch(original.parent / "canary"))))
    assert "posix.system" in refused(supervisor, original).message


DAMAGE = {
    "empty": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "cut by a byte": lambda data: data[:-1],
    "no pickle": lambda data: in_zip(b"", "archive/other"),
    "an empty pickle": lambda data: in_zip(b""),
    "a number": lambda data: in_zip(packed(7)),
    "no tensors": lambda data: in_zip(packed({"a": 1})),
    "nested deep": lambda data: in_zip(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
    "a directory that lies": lambda data: data[:-22] + data[-22:].replace(b"PK\x05\x06", b"PK\x05\x07"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_broken_file_is_a_typed_error(supervisor, original, damage):
    (original / VAE).write_bytes(damage((original / VAE).read_bytes()))
    error = refused(supervisor, original)
    assert isinstance(error, errors.ModelInvalid | errors.MemoryExceeded), error
    assert error.exit_code in (4, 6)


def test_file_that_changes_after_it_was_looked_at_is_not_shown(supervisor, original, monkeypatch):
    from wan_compat.supervisor import conversion

    choose = conversion.choose_sources

    def change(*arguments: Any) -> Any:
        chosen = choose(*arguments)
        (original / VAE).write_bytes((original / VAE).read_bytes() + b"\0")
        return chosen

    monkeypatch.setattr(conversion, "choose_sources", change)
    assert "is not the file" in refused(supervisor, original).message


def test_pickle_that_grows_in_memory_meets_the_limit(supervisor, original):
    # One character beyond the first plane makes four bytes of each of the others.
    text = b"a" * (200 << 20) + "\U0001f98a".encode()
    (original / VAE).write_bytes(in_zip(b"\x80\x02X" + len(text).to_bytes(4, "little") + text + b"."))
    output = original.parent / "converted"
    with pytest.raises(errors.MemoryExceeded):
        supervisor.convert(model=str(original), output=str(output), memory_limit_bytes=768 << 20)
    assert not output.exists()
