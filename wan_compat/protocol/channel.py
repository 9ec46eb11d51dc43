"""One end of the control channel: ZeroMQ PAIR over ipc://, typed messages, deadlines, no unbounded queue.

The supervisor binds, the worker connects, one endpoint per worker in a 0700 folder of its own, so that there is no
identity to forge. PAIR accepts one peer. LINGER is 0 and both queues are short: a peer that does not read makes
`send` fail instead of filling memory, and closing never hangs (pyzmq's best-known trap).
A channel belongs to the thread that made it.
"""

from __future__ import annotations

import time
from typing import Any

import zmq

from wan_compat.protocol.codec import MAX_MESSAGE_BYTES, Codec
from wan_compat.protocol.errors import DeadlineExceeded, InvalidRequest, ProtocolViolation

QUEUE_MESSAGES = 64
SEND_TIMEOUT_S = 2.0


class Channel:
    """Sends and receives encoded messages; does not judge their order (see states.py)."""

    def __init__(self, endpoint: str, *, bind: bool, outgoing: Codec[Any], incoming: Codec[Any]) -> None:
        path = endpoint.removeprefix("ipc://")
        if path == endpoint or len(path.encode()) > zmq.IPC_PATH_MAX_LEN:
            raise InvalidRequest(
                f"control endpoint {endpoint!r} must be ipc:// with at most {zmq.IPC_PATH_MAX_LEN} bytes",
                hint="set XDG_RUNTIME_DIR to a shorter path",
            )
        self._outgoing, self._incoming = outgoing, incoming
        self._context = zmq.Context(io_threads=1)
        try:
            self._socket = self._context.socket(zmq.PAIR)
            for option, value in (
                (zmq.LINGER, 0),
                (zmq.SNDHWM, QUEUE_MESSAGES),
                (zmq.RCVHWM, QUEUE_MESSAGES),
                (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
                (zmq.IMMEDIATE, 1),
                (zmq.SNDTIMEO, int(SEND_TIMEOUT_S * 1000)),
                (zmq.HANDSHAKE_IVL, 5000),
            ):
                self._socket.setsockopt(option, value)
            if bind:
                self._socket.bind(endpoint)
            else:
                # A worker loses the right to open sockets at `seal`, so a lost connection is final by design.
                self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
                self._socket.connect(endpoint)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Descriptor to poll for reading; edge-triggered (ZMQ_FD), so drain with `receive_nowait` until it returns None."""
        return int(self._socket.getsockopt(zmq.FD))

    def send(self, message: Any, seq: int) -> None:
        """Queue one message. Raises DeadlineExceeded when the peer has not read for SEND_TIMEOUT_S."""
        data = self._outgoing.encode(message, seq)
        try:
            self._socket.send(data)
        except zmq.Again as error:
            raise DeadlineExceeded(f"peer accepted no {type(message).__name__} within {SEND_TIMEOUT_S} s") from error

    def receive_nowait(self) -> tuple[int, Any] | None:
        """Return the next (seq, message), or None when there is none. Raises ProtocolViolation."""
        try:
            frame = self._socket.recv(zmq.NOBLOCK, copy=True)
        except zmq.Again:
            return None
        if self._socket.getsockopt(zmq.RCVMORE):
            raise ProtocolViolation("message of several parts")
        assert isinstance(frame, bytes)
        return self._incoming.decode(frame)

    def receive(self, timeout_s: float) -> tuple[int, Any]:
        """Wait for the next (seq, message). Raises DeadlineExceeded after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            item = self.receive_nowait()
            if item is not None:
                return item
            left = deadline - time.monotonic()
            if left <= 0 or not self._socket.poll(max(1, int(left * 1000)), zmq.POLLIN):
                raise DeadlineExceeded(f"no message within {timeout_s:g} s")

    def close(self) -> None:
        self._context.destroy(linger=0)

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
