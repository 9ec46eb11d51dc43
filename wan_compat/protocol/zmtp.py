"""ZMTP 3, as much of it as one ZeroMQ PAIR socket says to another, read from a peer that may be hostile.

    peer (libzmq)                          us
      |  signature  ->                     <- greeting   64 bytes each: signature, version, mechanism NULL
      |  rest of its greeting ->
      |  READY ->                          <- READY      one command each, with the kind of socket
      |  message*  ->                      <- message*   one frame each

Why not libzmq: it queues the parts of a message that has not ended without counting them, so a peer that never ends
one grows our memory by gigabytes in seconds, and it drops a peer that breaks a limit without telling anybody
(docs/adr/0010). Here nothing is kept but one unfinished frame of bounded length, and what a PAIR peer does not say is
a violation with a name: several parts, commands after the handshake, frames over the limit. Nothing here does IO.

Format: https://rfc.zeromq.org/spec/23/ (3.0), https://rfc.zeromq.org/spec/37/ (3.1)
"""

from __future__ import annotations

import struct

from wan_compat.protocol.errors import ProtocolViolation

_MORE, _LONG, _COMMAND = 1, 2, 4
_SIGNATURE_BYTES, _GREETING_BYTES = 10, 64
_LENGTH = struct.Struct(">Q")
_VALUE_LENGTH = struct.Struct(">I")
_MAX_PROPERTIES = 8


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + _VALUE_LENGTH.pack(len(value)) + value


_NULL = b"NULL".ljust(20, b"\0")
_SOCKET_TYPE, _PAIR = b"socket-type", b"PAIR"
_READY_NAME = b"\x05READY"
_READY_BODY = _READY_NAME + _property(b"Socket-Type", _PAIR)

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + _NULL + b"\0" + bytes(31)
READY = bytes([_COMMAND, len(_READY_BODY)]) + _READY_BODY


def pack_frame(body: bytes) -> bytes:
    """Return one message as its only frame."""
    if len(body) <= 0xFF:
        return bytes([0, len(body)]) + body
    return bytes([_LONG]) + _LENGTH.pack(len(body)) + body


class PairReader:
    """Takes bytes as they come and gives whole messages. The first violation raises and is final.

    Memory: one frame's header and body, and what one `feed` brought. Ask `next_message` until None before each `feed`.
    """

    def __init__(self, max_message_bytes: int) -> None:
        self._max = max_message_bytes
        self._buffer = bytearray()
        self._greeted = False
        self.established = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes; return what the handshake has us answer, usually nothing. Raises ProtocolViolation."""
        self._buffer += data
        answer = b""
        if not self._greeted:
            self._check_greeting()
            answer = READY if self._greeted else b""
        if self._greeted and not self.established:
            self._check_ready()
        return answer

    def next_message(self) -> bytes | None:
        """Return the next whole message, or None. Raises ProtocolViolation."""
        if not self.established:
            return None
        return self._take_frame(0)

    def _check_greeting(self) -> None:
        seen = self._buffer
        # Checked from the first byte on: a peer that is no ZeroMQ socket is told apart before it has said 64 bytes.
        if (seen and seen[0] != 0xFF) or (len(seen) >= _SIGNATURE_BYTES and not seen[9] & 1):
            raise ProtocolViolation("the peer is not a ZeroMQ socket")
        if len(seen) < _GREETING_BYTES:
            return
        if seen[10] != 3:
            raise ProtocolViolation(f"the peer speaks ZMTP {seen[10]}, not 3")
        if seen[12:32] != _NULL:
            raise ProtocolViolation("the peer wants another mechanism than NULL")
        del seen[:_GREETING_BYTES]
        self._greeted = True

    def _check_ready(self) -> None:
        body = self._take_frame(_COMMAND)
        if body is None:
            return
        if not body.startswith(_READY_NAME):
            raise ProtocolViolation("the peer's first command is not READY")
        kinds = [value for name, value in _properties(body[len(_READY_NAME) :]) if name.lower() == _SOCKET_TYPE]
        if kinds != [_PAIR]:
            raise ProtocolViolation("the peer is not a PAIR socket")
        self.established = True

    def _take_frame(self, kind: int) -> bytes | None:
        """Take one whole frame of `kind` (0: message, else command) off the buffer; None while it is not all there."""
        buffer = self._buffer
        if not buffer:
            return None
        flags = buffer[0]
        if flags & ~_LONG != kind:
            if flags & _COMMAND and not kind:
                raise ProtocolViolation("a ZMTP command after the handshake")
            if flags & _MORE and not kind:
                raise ProtocolViolation("message of several parts")
            raise ProtocolViolation(f"a ZMTP frame with the flags 0x{flags:02x}")
        start = 1 + (_LENGTH.size if flags & _LONG else 1)
        if len(buffer) < start:
            return None
        length = _LENGTH.unpack_from(buffer, 1)[0] if flags & _LONG else buffer[1]
        if length > self._max:
            raise ProtocolViolation(f"message of {length} bytes exceeds {self._max}")
        end = start + length
        if len(buffer) < end:
            return None
        body = bytes(memoryview(buffer)[start:end])
        del buffer[:end]
        return body


def _properties(data: bytes) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    position = 0
    while position < len(data):
        if len(found) == _MAX_PROPERTIES:
            raise ProtocolViolation(f"READY has more than {_MAX_PROPERTIES} properties")
        name_end = position + 1 + data[position]
        value_start = name_end + _VALUE_LENGTH.size
        if value_start > len(data):
            raise ProtocolViolation("READY is truncated")
        end = value_start + _VALUE_LENGTH.unpack_from(data, name_end)[0]
        if end > len(data):
            raise ProtocolViolation("READY is truncated")
        found.append((data[position + 1 : name_end], data[value_start:end]))
        position = end
    return found
