"""T14: folders that lie about what they hold, given to a supervisor as a user would: refused soon, with little memory,
before any process is started. Each lie does harm to a reader that believes it, which is shown first.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.assets.tiny_wan import tiny_model
from tests.supervisor.conftest import misbehaving, request_for  # noqa: F401 - fixtures
from wan_compat.protocol import errors
from wan_compat.supervisor.worker_pool import WorkerPool

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
CONFIG = "vae/config.json"
MAX_GROWTH_BYTES = 192 << 20  # of all that a supervisor ever needs; a believed lie asks for gigabytes
MAX_S = 10.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("t2v"), folder)
    return folder


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header, data = header_of(path)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def first(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(value for name, value in header.items() if name != "__metadata__")
    return found


def sparse(path: Path, size: int, beginning: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(beginning)
        file.truncate(size)


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


LIES: dict[str, Callable[[Path], object]] = {
    "header of 2**60 bytes": lambda m: (m / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
    "header of a gigabyte": lambda m: sparse(m / WEIGHTS, 2 << 30, struct.pack("<Q", 1 << 30) + b'{"'),
    "shape of 2**62 numbers": lambda m: rewrite(m / WEIGHTS, lambda h: first(h).update(shape=[1 << 31, 1 << 31])),
    "negative shape": lambda m: rewrite(m / WEIGHTS, lambda h: first(h).update(shape=[-1, 4])),
    "data beyond the end": lambda m: rewrite(m / WEIGHTS, lambda h: first(h).update(data_offsets=[0, 1 << 50])),
    "data that overlap": lambda m: rewrite(m / WEIGHTS, lambda h: h.update(again=dict(first(h)))),
    "JSON as deep as a well": lambda m: (m / CONFIG).write_text("[" * 200_000 + "]" * 200_000),
    "JSON of a gigabyte": lambda m: sparse(m / CONFIG, 1 << 30, b'{"a": "'),
    "number of a million digits": lambda m: (m / CONFIG).write_text('{"z_dim": 1' + "0" * 1_000_000 + "}"),
    "FIFO": lambda m: replace(m / CONFIG, os.mkfifo),
    "link to an endless device": lambda m: replace(m / CONFIG, lambda path: path.symlink_to("/dev/zero")),
    "link out of the model": lambda m: replace(m / CONFIG, lambda path: path.symlink_to("/etc/passwd")),
    "index that climbs out": lambda m: (
        (m / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": {"w": "../../../../etc/passwd"}})
        ),
        (m / WEIGHTS).unlink(),
    ),
    "three thousand files": lambda m: [(m / f"f{number}.json").touch() for number in range(3_000)],
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_soon_with_little_memory_and_no_process(lie, model, misbehaving, request_for, tmp_path):  # noqa: F811
    LIES[lie](model)
    supervisor = misbehaving("well")
    with watched() as seen, pytest.raises(errors.WanCompatError) as caught:
        supervisor.generate(request_for(model=str(model), output=str(tmp_path / "x.mp4")))
    assert caught.value.exit_code in (4, 5), caught.value
    assert seen["growth"] < MAX_GROWTH_BYTES and seen["s"] < MAX_S, seen
    assert not seen["children"], seen
    assert not (tmp_path / "x.mp4").exists()


class watched:
    """Watches this process while something runs in it: growth of its memory, the time, and children that appeared."""

    def __enter__(self) -> dict[str, Any]:
        self._process, self._over = psutil.Process(), threading.Event()
        self._known = {child.pid for child in self._process.children()}
        self._seen: dict[str, Any] = {"growth": 0, "children": [], "s": 0.0}
        self._began, self._before = time.monotonic(), self._process.memory_info().rss
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self._seen

    def __exit__(self, *_: object) -> None:
        self._seen["s"] = time.monotonic() - self._began
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.005):
            self._seen["growth"] = max(self._seen["growth"], self._process.memory_info().rss - self._before)
            self._seen["children"] += [c.pid for c in self._process.children() if c.pid not in self._known]


def test_a_reader_that_believes_is_harmed(model: Path) -> None:
    """The same lies, told to the readers that everyone uses."""
    LIES["JSON as deep as a well"](model)
    with pytest.raises(RecursionError):
        json.loads((model / CONFIG).read_text())
    LIES["link to an endless device"](model)
    with open(model / CONFIG, "rb") as endless:
        assert len(endless.read(64 << 20)) == 64 << 20  # and so on, for ever
    LIES["link out of the model"](model)
    assert "root:" in (model / CONFIG).read_text()
    LIES["FIFO"](model)
    waits = threading.Thread(target=lambda: open(model / CONFIG).close())
    waits.start()
    waits.join(0.2)
    assert waits.is_alive()
    os.close(os.open(model / CONFIG, os.O_WRONLY))
    waits.join(5)
    LIES["header of 2**60 bytes"](model)
    with open(model / WEIGHTS, "rb") as file, pytest.raises((MemoryError, OverflowError)):
        bytearray(struct.unpack("<Q", file.read(8))[0])


@pytest.fixture
def swapped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Return a function that has something happen between the check of a model and its use by a worker."""
    real = WorkerPool.acquire

    def after_the_check(happens: Callable[[], object]) -> None:
        def acquire(*arguments: Any, **options: Any) -> Any:
            happens()
            return real(*arguments, **options)

        monkeypatch.setattr(WorkerPool, "acquire", acquire)

    return after_the_check


@pytest.mark.parametrize("how", ["other file", "link", "longer", "same length, same place"])
def test_what_changed_after_the_check_is_not_loaded(how, model, swapped, misbehaving, request_for):  # noqa: F811
    target, other = model / WEIGHTS, model.parent / "other"
    other.write_bytes(target.read_bytes())

    def change() -> None:
        if how == "other file":
            os.replace(other, target)
        elif how == "link":
            replace(target, lambda path: path.symlink_to(other))
        elif how == "longer":
            with target.open("ab") as file:
                file.write(b"x")
        else:
            time.sleep(0.02)  # a file system's clock may stand still for some milliseconds
            with target.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\x7f")

    swapped(change)
    with pytest.raises(errors.SandboxUnavailable, match="not the file that was admitted"):
        misbehaving("well").generate(request_for(model=str(model), output=None))
