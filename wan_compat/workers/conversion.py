"""Weights of any form into bytes: opens the files of a conversion, lists their tensors, sends what is asked for.

Runs in a throw-away worker, the only one that is ever shown a pickle. It decides nothing and writes nothing: new names,
order and headers are the supervisor's, and bytes leave through the ring alone. Pickles are opened with torch's
weights-only reader, which knows a list of harmless types and calls nothing else; its past holes (CVE-2025-32434,
CVE-2026-24747) are why torch has a floor here, and why this runs in the sandbox all the same.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from safetensors import safe_open

from wan_compat.protocol import messages as m
from wan_compat.protocol.conversion import CHUNK_BYTES, MAX_LISTED, ListedTensor, Stream, TensorPiece, WeightSource
from wan_compat.protocol.errors import (
    EnvironmentLacks,
    JobCancelled,
    ModelCorrupt,
    ModelInvalid,
    ProtocolViolation,
    clean_text,
)
from wan_compat.protocol.ring import SLOTS, RingLayout
from wan_compat.protocol.values import Value
from wan_compat.workers.cancellation import Cancellation
from wan_compat.workers.failures import to_message, translate
from wan_compat.workers.frames import FrameRing

MIN_TORCH = "2.10"

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_NAME = re.compile(r"[\x21-\x7e]{1,256}")
MAX_DIMENSIONS = 8
# Where training programs put the weights inside of what they save.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")

# One opened file: the names, types and shapes in it, and a function that returns one tensor.
Opened = tuple[Mapping[str, tuple[str, tuple[int, ...]]], Callable[[str], torch.Tensor]]


def open_weights(
    order: m.OpenWeights, folder: str, cancellation: Cancellation, post: Callable[[Value], None]
) -> tuple[list[Opened], Value]:
    """Open every file and list its tensors through `post`; return what was opened and the last answer."""
    opened: list[Opened] = []
    try:
        for number, source in enumerate(order.files):
            cancellation.check()
            try:
                tensors, get = _open(source, os.path.join(folder, source.path))
            except Exception as error:
                raise translate(error, loading=True, component=clean_text(source.path, 200)) from error
            opened.append((tensors, get))
            for listed in _batches(tensors):
                post(m.TensorsListed(file=number, tensors=listed))
    except JobCancelled:
        return [], m.Failed(job=0, code="generation_failed", message="opening was cancelled")
    except Exception as error:  # noqa: BLE001 - foreign libraries raise anything; it is translated and reported
        return [], to_message(error, 0)
    return opened, m.WeightsOpened()


def send_tensors(opened: list[Opened], order: m.SendTensors, ring: FrameRing, cancellation: Cancellation) -> Value:
    """Publish the bytes of the pieces, in order; return the last answer."""
    try:
        writer = _ChunkWriter(ring, order.job, Stream.of(order.pieces))
        for piece in order.pieces:
            cancellation.check()
            writer.write(_bytes_of(opened, piece))
        writer.finish()
    except JobCancelled:
        return m.Cancelled(job=order.job)
    except Exception as error:  # noqa: BLE001 - as above
        return to_message(error, order.job)
    return m.TensorsSent(job=order.job)


# ---- opening --------------------------------------------------------------------------------------------------------


def _open(source: WeightSource, path: str) -> Opened:
    return _open_pickle(source.path, path) if source.is_pickle else _open_safetensors(source.path, path)


def _open_safetensors(name: str, path: str) -> Opened:
    file = safe_open(path, framework="pt")
    tensors = {}
    for key in file.keys():  # noqa: SIM118 - not a mapping
        part = file.get_slice(key)
        tensors[_checked_name(name, key)] = (part.get_dtype(), tuple(part.get_shape()))
    return tensors, file.get_tensor


def _open_pickle(name: str, path: str) -> Opened:
    if torch.__version__ < MIN_TORCH:  # TorchVersion compares as versions do
        raise EnvironmentLacks(
            f"torch {torch.__version__} is installed; pickles are opened with {MIN_TORCH} or later only",
            hint="pip install -U 'wan-compat[worker]'",
        )
    if not zipfile.is_zipfile(path):
        raise ModelInvalid(
            f"{clean_text(name, 200)!r} is not in torch's zip format: a plain pickle, an old file, or something else",
            hint="use a repository with .safetensors weights, or files that torch 1.6 or later saved",
        )
    try:
        # Mapped, not read: the file's pages can be dropped again, and only what is sent is ever touched.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":  # no module of this package imports pickle, for nothing
            raise
        raise ModelInvalid(
            f"{clean_text(name, 200)!r} holds more than tensors, and torch refused it: {_cause(error)}",
            hint="do not load this file with another program: what it asks for could be code",
        ) from error
    state = _unwrapped(loaded)
    if state is None:
        raise ModelInvalid(f"{clean_text(name, 200)!r} holds no table of tensors, but a {type(loaded).__name__}")
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    kept: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            kept[_checked_name(name, key)] = value
            tensors[key] = _measured(name, key, value)
    return tensors, kept.__getitem__


def _cause(error: Exception) -> str:
    """Return the cause that torch names, without its advice to trust the file."""
    text = clean_text(str(error), 4000)
    found = re.search(r"unsupported [^\n]{1,240}?(?=\.? was not|\.?\n|$)", text, re.IGNORECASE)
    return found[0] if found else text.partition(".")[0][:240]


def _unwrapped(loaded: Any) -> Mapping[str, Any] | None:
    if not isinstance(loaded, Mapping):
        return None
    for wrapper in _WRAPPERS:
        inner = loaded.get(wrapper)
        if isinstance(inner, Mapping) and any(isinstance(value, torch.Tensor) for value in inner.values()):
            return inner
    return loaded


def _checked_name(file: str, key: object) -> str:
    if not isinstance(key, str) or not _NAME.fullmatch(key):
        raise ModelInvalid(f"{clean_text(file, 200)!r} has a tensor named {clean_text(repr(key), 120)}")
    return key


def _measured(file: str, key: str, tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """Return type and shape of a tensor whose bytes are really there.

    A pickle may claim any shape over any storage: strides of zero make a terabyte out of four bytes.
    """
    where = f"the tensor {key!r} of {clean_text(file, 200)!r}"
    dtype = _DTYPES.get(tensor.dtype)
    plain = tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.is_quantized
    if dtype is None or not plain or tensor.dim() > MAX_DIMENSIONS:
        raise ModelInvalid(f"{where} is {tensor.dtype}, {tensor.layout} on {tensor.device}: no plain weight")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ModelCorrupt(f"{where} claims {tuple(tensor.shape)}, more than its storage holds")
    return dtype, tuple(tensor.shape)


def _batches(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> Iterator[tuple[ListedTensor, ...]]:
    listed = [
        ListedTensor.model_validate({"name": name, "dtype": dtype, "shape": shape})
        for name, (dtype, shape) in tensors.items()
    ]
    for start in range(0, len(listed), MAX_LISTED):
        yield tuple(listed[start : start + MAX_LISTED])


# ---- sending --------------------------------------------------------------------------------------------------------


def _bytes_of(opened: list[Opened], piece: TensorPiece) -> torch.Tensor:
    tensors, get = opened[piece.file]
    if piece.name not in tensors:
        raise ModelInvalid(f"file {piece.file} has no tensor {piece.name!r}")
    # A reshape copies only what does not lie in order, and then no more than the tensor.
    flat = get(piece.name).reshape(-1).view(torch.uint8)
    if piece.offset + piece.size > flat.numel():
        raise ModelInvalid(f"{piece.name!r} has {flat.numel()} bytes, {piece.offset + piece.size} were asked for")
    return flat[piece.offset : piece.offset + piece.size]


class _ChunkWriter:
    """Fills the ring's slots one after the other, as FrameWriter does with frames."""

    def __init__(self, ring: FrameRing, job: int, stream: Stream) -> None:
        ring.forget_credits()
        self._ring, self._job, self._layout = ring, job, RingLayout(stream.chunks)
        self._published = self._consumed = self._filled = 0

    def write(self, data: torch.Tensor) -> None:
        start = 0
        while start < data.numel():
            count = min(data.numel() - start, CHUNK_BYTES - self._filled)
            self._slot()[self._filled : self._filled + count].copy_(data[start : start + count])
            start += count
            self._filled += count
            if self._filled == CHUNK_BYTES:
                self._publish()

    def finish(self) -> None:
        """Publish what is begun; of a stream without bytes too, one chunk."""
        while self._published < self._layout.frame.num_frames:
            self._slot()
            self._publish()

    def _slot(self) -> torch.Tensor:
        while self._published - self._consumed >= SLOTS:
            consumed = self._ring.wait_for_credit(self._job)
            if not self._consumed <= consumed <= self._published:
                raise ProtocolViolation(f"credit for {consumed} chunks, of {self._published} published")
            self._consumed = consumed
        return self._ring.slot(self._layout, self._published).view(-1)

    def _publish(self) -> None:
        self._ring.announce(self._job, self._published)
        self._published += 1
        self._filled = 0
