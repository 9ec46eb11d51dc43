"""The worker's end of the control channel: a ZeroMQ PAIR socket. Its peer is the supervisor, which is trusted.

LINGER is 0 and both queues are short: a peer that does not read makes `send` fail instead of filling memory, and
closing never hangs (pyzmq's best-known trap).
"""

from __future__ import annotations

import zmq

from wan_compat.protocol.codec import MAX_MESSAGE_BYTES
from wan_compat.protocol.errors import ProtocolViolation

QUEUE_MESSAGES = 64


class ZmqEnd:
    """Connects once; see channel.End."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context(io_threads=1)
        try:
            self.socket = self._context.socket(zmq.PAIR)
            for option, value in (
                (zmq.LINGER, 0),
                (zmq.SNDHWM, QUEUE_MESSAGES),
                (zmq.RCVHWM, QUEUE_MESSAGES),
                (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
                (zmq.IMMEDIATE, 1),
                (zmq.HANDSHAKE_IVL, 5000),
                # A worker loses the right to open sockets at `seal`, so a lost connection is final by design.
                (zmq.RECONNECT_IVL, -1),
            ):
                self.socket.setsockopt(option, value)
            self.socket.connect(endpoint)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return int(self.socket.getsockopt(zmq.FD))

    def send(self, data: bytes, timeout_s: float) -> bool:
        self.socket.setsockopt(zmq.SNDTIMEO, int(timeout_s * 1000))
        try:
            self.socket.send(data)
        except zmq.Again:
            return False
        return True

    def receive_nowait(self) -> bytes | None:
        try:
            frame = self.socket.recv(zmq.NOBLOCK, copy=True)
        except zmq.Again:
            return None
        if self.socket.getsockopt(zmq.RCVMORE):
            raise ProtocolViolation("message of several parts")
        assert isinstance(frame, bytes)
        return frame

    def wait(self, timeout_s: float) -> None:
        self.socket.poll(max(1, int(timeout_s * 1000)), zmq.POLLIN)

    def close(self) -> None:
        self._context.destroy(linger=0)
