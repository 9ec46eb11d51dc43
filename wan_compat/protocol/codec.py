"""Bytes to messages and back: msgpack under hard limits, then a closed pydantic schema.

The only place that sees raw bytes from a worker, or from a client of the control socket (control.py), which has limits
of its own. The order of checks is the order of cost: total size, then a structural walk over the bytes (depth, counts,
types, no extension types) before anything is built, then msgpack with its own limits, then pydantic in strict mode. The
first failure raises ProtocolViolation; nothing is repaired.

Wire form of one message: the array `[version, seq, map]`, one ZeroMQ frame. `seq` counts from 1 per direction.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Generic, TypeVar

import msgpack
from pydantic import TypeAdapter, ValidationError

from wan_compat.protocol.errors import ProtocolViolation, clean_text
from wan_compat.protocol.messages import PROTOCOL_VERSION, FromWorker, ToWorker
from wan_compat.protocol.values import Value

MAX_MESSAGE_BYTES = 256 << 10
MAX_DEPTH = 8
MAX_ITEMS = 512  # of one array or map
MAX_NODES = 8192  # of one message
MAX_STRING_BYTES = 128 << 10
EVIDENCE_BYTES = 64


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one message: its bytes, how deep it nests, items of one array or map, values in all, bytes of one string."""

    message_bytes: int = MAX_MESSAGE_BYTES
    depth: int = MAX_DEPTH
    items: int = MAX_ITEMS
    nodes: int = MAX_NODES
    string_bytes: int = MAX_STRING_BYTES


WORKER_LIMITS = Limits()

M = TypeVar("M", bound=Value)


class Codec(Generic[M]):
    """One direction of the wire. Stateless; the sequence number is checked by the state machine."""

    def __init__(self, union: Any, *, version: int = PROTOCOL_VERSION, limits: Limits = WORKER_LIMITS) -> None:
        self._adapter: TypeAdapter[M] = TypeAdapter(union)
        self._version = version
        self._limits = limits

    def encode(self, message: M, seq: int) -> bytes:
        """Return the wire form. Raises ProtocolViolation when our own message breaks a limit, before it is sent."""
        data: bytes = msgpack.packb(
            [self._version, seq, message.model_dump(mode="python")], use_bin_type=True, strict_types=False
        )
        if len(data) > self._limits.message_bytes:
            raise ProtocolViolation(
                f"a {type(message).__name__} of {len(data)} bytes exceeds {self._limits.message_bytes}"
            )
        return data

    def decode(self, data: bytes | memoryview) -> tuple[int, M]:
        """Return (seq, message). Raises ProtocolViolation for anything else than one well-formed message.

        The error's details hold the first bytes of what was refused, as evidence.
        """
        try:
            return self._decode(data)
        except ProtocolViolation as error:
            error.details["first_bytes"] = bytes(data[:EVIDENCE_BYTES]).hex()
            raise

    def _decode(self, data: bytes | memoryview) -> tuple[int, M]:
        limits = self._limits
        body = bytes(data) if len(data) <= limits.message_bytes else None
        if body is None:
            raise ProtocolViolation(f"message of {len(data)} bytes exceeds {limits.message_bytes}")
        check_structure(body, limits)
        try:
            envelope = msgpack.unpackb(
                body,
                raw=False,
                use_list=False,
                strict_map_key=True,
                max_str_len=limits.string_bytes,
                max_bin_len=0,
                max_array_len=limits.items,
                max_map_len=limits.items,
                max_ext_len=0,
            )
        except (ValueError, msgpack.exceptions.UnpackException) as error:
            raise ProtocolViolation(f"undecodable message: {clean_text(str(error), 200)}") from error
        if not isinstance(envelope, tuple) or len(envelope) != 3:
            raise ProtocolViolation("message is not [version, seq, map]")
        version, seq, payload = envelope
        if type(version) is not int or version != self._version:
            raise ProtocolViolation(f"protocol version {self._version} expected")
        if type(seq) is not int or not 1 <= seq < 2**53:
            raise ProtocolViolation("sequence number out of range")
        if not isinstance(payload, dict):
            raise ProtocolViolation("message body is not a map")
        try:
            return seq, self._adapter.validate_python(payload)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ProtocolViolation(f"message refused at {clean_text(where, 100)}: {first['type']}") from error


def check_structure(data: bytes, limits: Limits = WORKER_LIMITS) -> None:
    """Walk msgpack bytes without building anything: bounded depth, item and node counts, allowed types only.

    Allowed are nil, booleans, integers, float64, strings, arrays and maps. Binary, float32 and extension types
    (timestamps included) are refused; so are truncated and trailing bytes and duplicate or non-string keys
    (the latter two by msgpack and pydantic afterwards). Format: https://github.com/msgpack/msgpack/blob/master/spec.md
    """
    position, end, nodes = 0, len(data), 0
    remaining = [1]  # items still to read, per open container
    while remaining:
        if remaining[-1] == 0:
            remaining.pop()
            continue
        remaining[-1] -= 1
        nodes += 1
        if nodes > limits.nodes:
            raise ProtocolViolation(f"message has more than {limits.nodes} values")
        if position >= end:
            raise ProtocolViolation("message is truncated")
        first = data[position]
        position += 1
        items = 0
        if first <= 0x7F or first >= 0xE0 or first in (0xC0, 0xC2, 0xC3):
            continue
        if first <= 0x8F:
            items = 2 * (first & 0x0F)
        elif first <= 0x9F:
            items = first & 0x0F
        elif first <= 0xBF:
            position += first & 0x1F
            continue
        elif first in _FIXED:
            position += _FIXED[first]
            continue
        elif first in _STRINGS or first in _ARRAYS or first in _MAPS:
            width = _STRINGS.get(first) or _ARRAYS.get(first) or _MAPS[first]
            count = int.from_bytes(data[position : position + width], "big")
            position += width
            if first in _STRINGS:
                if count > limits.string_bytes:
                    raise ProtocolViolation(f"string of {count} bytes exceeds {limits.string_bytes}")
                position += count
                continue
            items = count * 2 if first in _MAPS else count
        else:
            raise ProtocolViolation(f"msgpack type 0x{first:02x} is not allowed")
        if items > 2 * limits.items:
            raise ProtocolViolation(f"container of {items} values exceeds {limits.items} items")
        remaining.append(items)
        if len(remaining) > limits.depth + 1:
            raise ProtocolViolation(f"message is nested deeper than {limits.depth}")
    if position > end:
        raise ProtocolViolation("message is truncated")
    if position < end:
        raise ProtocolViolation(f"{end - position} bytes after the message")


_FIXED = {0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_STRINGS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}


def to_worker_codec() -> Codec[Any]:
    return Codec(ToWorker)


def from_worker_codec() -> Codec[Any]:
    return Codec(FromWorker)
