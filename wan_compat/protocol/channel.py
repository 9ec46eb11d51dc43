"""The control channel: typed messages over ZeroMQ's PAIR on ipc://, with deadlines and without an unbounded queue.

    supervisor   BoundEnd      binds; our own reader of ZMTP, because what it reads may be hostile (zmtp.py)
    worker       ZmqEnd        connects; libzmq, whose peer is the supervisor (zmq_end.py)

One endpoint per worker in a 0700 folder of its own, and one peer per endpoint: the first connection is the only one,
so that there is no identity to forge. A peer that does not read makes `send` fail instead of filling memory; one that
talks too much is read at a bounded rate, and its own writes block. Closing never hangs. A channel has one thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import Any, Protocol

from wan_compat.protocol.codec import MAX_MESSAGE_BYTES, Codec
from wan_compat.protocol.errors import DeadlineExceeded, InvalidRequest
from wan_compat.protocol.zmtp import GREETING, PairReader, pack_frame

SEND_TIMEOUT_S = 2.0
MAX_PATH_BYTES = 107  # sun_path of unix(7), less its terminating zero

# How fast the supervisor reads: messages, and reads that brought no whole message, are counted alike. The chattiest
# honest worker reports some hundred steps a second; a flood at this rate costs a tenth of a core.
RATE_PER_S = 1000.0
BURST = 1000.0

_READ_BYTES = 64 << 10


class End(Protocol):
    """Moves whole messages as bytes. BoundEnd and ZmqEnd are the two."""

    def fileno(self) -> int: ...
    def send(self, data: bytes, timeout_s: float) -> bool: ...
    def receive_nowait(self) -> bytes | None: ...
    def wait(self, timeout_s: float) -> None: ...
    def close(self) -> None: ...


class Channel:
    """Sends and receives encoded messages; does not judge their order (see states.py).

    Args:
        endpoint: "ipc://" and a path short enough for a Unix socket.
        bind: True for the supervisor's end, False for the worker's.
        outgoing, incoming: The codecs of the two directions.
    """

    def __init__(self, endpoint: str, *, bind: bool, outgoing: Codec[Any], incoming: Codec[Any]) -> None:
        path = endpoint.removeprefix("ipc://")
        if path == endpoint or len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise InvalidRequest(
                f"control endpoint {endpoint!r} must be ipc:// with at most {MAX_PATH_BYTES} bytes",
                hint="set XDG_RUNTIME_DIR to a shorter path",
            )
        self._outgoing, self._incoming = outgoing, incoming
        self._end: End
        if bind:
            self._end = BoundEnd(path)
        else:
            # Imported here, so that the supervisor does without libzmq altogether; the zygote has it imported.
            from wan_compat.protocol.zmq_end import ZmqEnd

            self._end = ZmqEnd(endpoint)

    def fileno(self) -> int:
        """Descriptor to poll for reading, -1 when there is nothing to poll; ask again before each poll.

        The worker's is edge-triggered (ZMQ_FD), so drain with `receive_nowait` until it returns None.
        """
        return self._end.fileno()

    def send(self, message: Any, seq: int) -> None:
        """Send one message. Raises DeadlineExceeded when the peer has not read for SEND_TIMEOUT_S."""
        if not self._end.send(self._outgoing.encode(message, seq), SEND_TIMEOUT_S):
            raise DeadlineExceeded(f"peer accepted no {type(message).__name__} within {SEND_TIMEOUT_S} s")

    def receive_nowait(self) -> tuple[int, Any] | None:
        """Return the next (seq, message), or None when there is none. Raises ProtocolViolation."""
        data = self._end.receive_nowait()
        return None if data is None else self._incoming.decode(data)

    def receive(self, timeout_s: float) -> tuple[int, Any]:
        """Wait for the next (seq, message). Raises DeadlineExceeded after `timeout_s`, ProtocolViolation."""
        deadline = time.monotonic() + timeout_s
        while (item := self.receive_nowait()) is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise DeadlineExceeded(f"no message within {timeout_s:g} s")
            self._end.wait(left_s)
        return item

    def close(self) -> None:
        self._end.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BoundEnd:
    """The supervisor's end: one listening socket until the first peer came, then that peer's connection.

    Holds one unfinished message of the peer and one of ours at most; all other waiting is in the kernel's socket
    buffers, which are bounded and charged to the sender.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._peer: socket.socket | None = None
        self._listener: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._reader = PairReader(MAX_MESSAGE_BYTES)
        self._gone = False
        self._stuck = False
        self._unsent = b""
        self._allowance = BURST
        self._refilled = time.monotonic()
        try:
            self._listener.bind(path)
            self._listener.listen(1)
            self._listener.setblocking(False)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The listener's, then the peer's; -1 once it hung up (which is not yet a death) or while it must wait."""
        self._refill()
        if self._gone or self._allowance < 1:
            return -1
        waiting = self._peer or self._listener
        return waiting.fileno() if waiting is not None else -1

    def receive_nowait(self) -> bytes | None:
        """Return the next message, or None. Raises ProtocolViolation."""
        self._refill()
        while self._allowance >= 1:
            message = self._reader.next_message()
            if message is not None:
                self._allowance -= 1
                return message
            if not self._read():
                return None
        return None

    def send(self, data: bytes, timeout_s: float) -> bool:
        """Write one message; False when the peer does not read it. To a peer that is gone, nothing is written.

        A peer that was not ready once is not waited for again: half of a message may be on its way to it.
        """
        if self._gone:
            return True  # its pidfd tells of its death, the missing answers of anything else
        if self._stuck or self._peer is None or not self._reader.established:
            return False
        self._unsent += pack_frame(data)
        deadline = time.monotonic() + timeout_s
        while not self._flush():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                self._stuck = True
                self._unsent = b""
                return False
            _poll(self._peer.fileno(), select.POLLOUT, left_s)
        return True

    def wait(self, timeout_s: float) -> None:
        """Wait until there may be something to receive, at most `timeout_s`."""
        descriptor = self.fileno()
        if descriptor < 0:
            time.sleep(min(timeout_s, 0.01))
        else:
            _poll(descriptor, select.POLLIN, timeout_s)

    def close(self) -> None:
        self._stop_listening()
        if self._peer is not None:
            self._peer.close()
            self._peer = None
        self._gone = True

    def _read(self) -> bool:
        """Take what one read gives; False when there was nothing."""
        if self._gone or (self._peer is None and not self._accept()):
            return False
        assert self._peer is not None
        try:
            data = self._peer.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._gone = True
            return False
        self._allowance -= 1
        self._unsent += self._reader.feed(data)
        self._flush()
        return True

    def _accept(self) -> bool:
        if self._listener is None:
            return False
        try:
            self._peer, _ = self._listener.accept()
        except OSError:  # nobody yet, or one who has left again
            return False
        self._peer.setblocking(False)
        self._stop_listening()  # one peer, for good
        self._unsent = GREETING
        self._flush()
        return True

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _flush(self) -> bool:
        """Write what the socket takes of `_unsent`; True when all of it is written, or nobody is left to write to."""
        assert self._peer is not None
        while self._unsent:
            try:
                self._unsent = self._unsent[self._peer.send(self._unsent) :]
            except BlockingIOError:
                return False
            except OSError:
                # Only writing has ended: its last words may still wait to be read.
                self._unsent = b""
        return True

    def _refill(self) -> None:
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + (now - self._refilled) * RATE_PER_S)
        self._refilled = now


def _poll(descriptor: int, events: int, timeout_s: float) -> None:
    poller = select.poll()  # select() knows no descriptor above 1023, and the embedding program may have many
    poller.register(descriptor, events)
    poller.poll(timeout_s * 1000)
