"""One client of a control socket: its bytes in and out, and no more of either than is bounded.

    received    at most one unfinished request and what one read brought
    unsent      answers and events; beyond MAX_UNSENT_BYTES no request is read and no event is sent
    allowance   requests that may be answered now; it fills up with time

Nothing here waits, and nothing that a client does can raise out of here.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from wan_compat.protocol import control as c
from wan_compat.protocol.errors import ProtocolViolation, ResourceExceeded, WanCompatError
from wan_compat.supervisor.control_requests import Requests, Visitor
from wan_compat.supervisor.event_wire import refusal

if TYPE_CHECKING:
    from wan_compat.protocol.codec import Codec

_READ_BYTES = 64 << 10
_TURNS, _EVENTS = 8, 32  # requests, and events of one job, before the next client has its turn


class Visit:
    """One connection. Belongs to the control thread, which keeps in `registered` what it polls for."""

    def __init__(
        self, connection: socket.socket, requests: Requests, incoming: Codec[Any], outgoing: Codec[Any]
    ) -> None:
        self.connection = connection
        self.registered = selectors.EVENT_READ
        self.visitor: Visitor = Visitor()
        self.open = True
        self.greeting_deadline = time.monotonic() + c.GREETING_S
        self._requests = requests
        self._incoming, self._outgoing = incoming, outgoing
        self._received = bytearray()
        self._queue: deque[tuple[memoryview, int]] = deque()  # what to send, and a descriptor of ours to go with it
        self.unsent = 0
        self._allowance = c.REQUEST_BURST
        self._refilled = time.monotonic()
        self._ended = False  # we have said our last word
        self.has_more = False  # something could be done at once, but others had to have their turn

    @property
    def asks_too_fast(self) -> bool:
        return self.open and not self._ended and self._allowance < 1

    @property
    def is_held_back(self) -> bool:
        """Whether no request of it is read now: it asks too fast, does not read its answers, or is being hung up on."""
        return self._ended or self._allowance < 1 or self.unsent > c.MAX_UNSENT_BYTES

    def read(self) -> None:
        """Take what one read gives."""
        try:
            data = self.connection.recv(_READ_BYTES)  # descriptors that somebody attaches find no room, and are closed
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._received += data

    def work(self) -> None:
        """Answer requests, send events and write what the socket takes, all of it for one turn."""
        self._refill()
        self._write()
        self.has_more = False
        turns = 0
        while self.open and not self.is_held_back and (body := self._next_request()) is not None:
            self._allowance -= 1
            turns += 1
            try:
                number, request = self._incoming.decode(body)
                answer, descriptor = self._requests.answer(request, number, self.visitor)
                self._send(answer, number, descriptor)
            except ProtocolViolation as error:
                self.refuse(error)
            self._write()
            if turns == _TURNS:
                self.has_more = True
                break
        self._send_events()

    def refuse(self, error: WanCompatError) -> None:
        """Say why, and hang up once that is said."""
        self._send(refusal(error), c.NO_REQUEST)
        self.visitor.unfollow_all()
        self._ended = True
        self._write()

    def close(self) -> None:
        if self.open:
            self.open = False
            self.connection.close()
            while self._queue:
                _, descriptor = self._queue.popleft()
                if descriptor >= 0:
                    os.close(descriptor)
            self.unsent = 0

    def _next_request(self) -> bytes | None:
        header = c.LENGTH
        if len(self._received) < header.size:
            return None
        (length,) = header.unpack_from(self._received)
        if length > c.REQUEST_LIMITS.message_bytes:
            self._received.clear()
            self.refuse(ProtocolViolation(f"a request of {length} bytes exceeds {c.REQUEST_LIMITS.message_bytes}"))
            return None
        end = header.size + length
        if len(self._received) < end:
            return None
        body = bytes(memoryview(self._received)[header.size : end])
        del self._received[:end]
        return body

    def _send(self, message: Any, number: int, descriptor: int | None = None) -> None:
        try:
            data = c.pack(self._outgoing.encode(message, number))
        except (ProtocolViolation, ValueError, TypeError, OverflowError) as error:
            descriptor = None
            cause = ResourceExceeded(f"the answer cannot cross the socket: {error}")
            data = c.pack(self._outgoing.encode(refusal(cause), number))
        self._queue.append((memoryview(data), -1 if descriptor is None else os.dup(descriptor)))
        self.unsent += len(data)

    def _send_events(self) -> None:
        """Send what is new of what the client follows, as long as it reads."""
        news = self.visitor.news
        for job_id, followed in list(news.items()):
            if not self.open or self.unsent > c.MAX_UNSENT_BYTES // 2:
                return
            batch, is_over = self._requests.next_events(followed, limit=_EVENTS)
            for event in batch:
                self._send(event, followed.number)
            self._write()
            if is_over:
                self.visitor.follows.pop(job_id, None)
            if is_over or len(batch) < _EVENTS:
                del news[job_id]
            else:
                self.has_more = self.has_more or not self.unsent

    def _write(self) -> None:
        while self._queue and self.open:
            data, descriptor = self._queue[0]
            try:
                if descriptor >= 0:
                    sent = socket.send_fds(self.connection, [data], [descriptor])
                else:
                    sent = self.connection.send(data)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if descriptor >= 0:
                os.close(descriptor)  # it went with the first byte
            self.unsent -= sent
            self._queue.popleft()
            if sent < len(data):
                self._queue.appendleft((data[sent:], -1))
        if self._ended and not self._queue:
            self.close()

    def _refill(self) -> None:
        now = time.monotonic()
        self._allowance = min(c.REQUEST_BURST, self._allowance + (now - self._refilled) * c.REQUESTS_PER_S)
        self._refilled = now
