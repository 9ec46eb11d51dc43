"""The client's end of a control socket: numbered requests from any thread, events to whoever follows a job.

One thread takes what comes, another sends what that one has to say. When the connection breaks it is made again, if
that can be done within a while: the kernel, a debugger or a stopped process may have ended it, and the supervisor still
be there. A request that was under way is then asked again, for which every request is made so that asking twice does no
more than asking once.
"""

from __future__ import annotations

import array
import contextlib
import os
import queue
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from wan_compat.protocol import control as c
from wan_compat.protocol.errors import (
    DeadlineExceeded,
    EnvironmentLacks,
    NotServing,
    ProtocolViolation,
    SupervisorGone,
    WanCompatError,
)
from wan_compat.supervisor.control_server import peer_of
from wan_compat.supervisor.event_wire import error_of

CONNECT_S = 5.0
ANSWER_S = 30.0
RECONNECT_S = 5.0

# Takes an answer, and the descriptor that came along, which it closes.
Answered = Callable[[Any, int | None], None]

_READ_BYTES = 256 << 10
_MAX_DESCRIPTORS = 4


class Wire:
    """One connection, greeted. `receive` is for one thread, `send` for any.

    Raises:
        NotServing: Nobody answers there, or nobody of ours.
        EnvironmentLacks: Another user's, or another version's.
    """

    def __init__(self, path: str) -> None:
        self._outgoing, self._incoming = c.to_supervisor_codec(), c.from_supervisor_codec()
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(CONNECT_S)
            try:
                self._socket.connect(path)
                uid = peer_of(self._socket)[1]
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                raise NotServing(
                    f"nobody answers on {path}: {why}",
                    hint="start one with `wan-compat serve`",
                    details={"socket": path},
                ) from error
            if uid != os.geteuid():
                raise EnvironmentLacks(f"{path} is served by another user (id {uid})", hint="serve as yourself")
            self.greeting = self._greet(path)
            self._socket.settimeout(None)
        except BaseException:
            self.close()
            raise

    def _greet(self, path: str) -> c.Greeting:
        program = " ".join(["python", *(os.path.basename(word) for word in sys.argv[:1] if word)])[:500]
        try:
            with contextlib.suppress(BrokenPipeError):  # one that is full has said so, and hung up, before we speak
                self.send(c.Greet(program=program), 1)
            _, answer, _ = self.receive()
        except ProtocolViolation as error:
            raise EnvironmentLacks(
                f"what serves on {path} speaks another version of the control protocol than {c.CONTROL_VERSION}: "
                f"{error.message}",
                hint="run the same version of wan-compat in both programs",
            ) from error
        except OSError as error:
            raise NotServing(f"{path} hung up on us: {error}", details={"socket": path}) from error
        if isinstance(answer, c.Refusal):
            raise error_of(answer)
        if not isinstance(answer, c.Greeting):
            raise EnvironmentLacks(f"{path} did not greet us, but said {type(answer).__name__}")
        return answer

    def send(self, request: Any, number: int) -> None:
        """Send one request. Raises OSError when the connection is broken."""
        data = c.pack(self._outgoing.encode(request, number))
        with self._lock:
            self._socket.sendall(data)

    def receive(self) -> tuple[int, Any, int | None]:
        """Wait for the next message; return its number, itself, and the descriptor that came along.

        Raises:
            OSError: The connection is broken.
            ProtocolViolation: What came is not of the protocol.
        """
        header = c.LENGTH
        while True:
            if len(self._buffer) >= header.size:
                (length,) = header.unpack_from(self._buffer)
                if length > c.REPLY_LIMITS.message_bytes:
                    raise ProtocolViolation(f"a message of {length} bytes exceeds {c.REPLY_LIMITS.message_bytes}")
                if len(self._buffer) >= header.size + length:
                    break
            self._read()
        body = bytes(memoryview(self._buffer)[header.size : header.size + length])
        del self._buffer[: header.size + length]
        number, message = self._incoming.decode(body)
        document = message.generation if isinstance(message, c.JobResult) else None
        descriptor = None
        if document is not None and document.frames is not None:
            if not self._descriptors:
                raise ProtocolViolation("frames were announced, and did not come")
            descriptor = self._descriptors.popleft()
        return number, message, descriptor

    def _read(self) -> None:
        room = array.array("i")
        data, ancillary, _, _ = self._socket.recvmsg(
            _READ_BYTES, socket.CMSG_LEN(_MAX_DESCRIPTORS * room.itemsize), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                room.frombytes(payload[: len(payload) - len(payload) % room.itemsize])
        self._descriptors.extend(room)
        if len(self._descriptors) > _MAX_DESCRIPTORS:
            raise ProtocolViolation("more descriptors came than results")
        if not data:
            raise ConnectionResetError("the supervisor hung up")
        self._buffer += data

    def hang_up(self) -> None:
        """Wake who waits in `receive`, in whatever thread; `close` is left to that one."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())


class Connection:
    """A connection that comes back. Thread-safe.

    Args:
        path: Of the socket.
        on_event: Gets each JobEvent, in the reader's thread.
        on_return: Called there after connecting again, to follow again what was followed.
        on_end: Called there, once, when the supervisor is gone for good, or `close` was called.
        reconnect_s: For how long to try to connect again; 0 is not at all, None RECONNECT_S.
    """

    def __init__(
        self,
        path: str,
        *,
        on_event: Callable[[c.JobEvent], None] = lambda event: None,
        on_return: Callable[[], None] = lambda: None,
        on_end: Callable[[WanCompatError], None] = lambda error: None,
        reconnect_s: float | None = None,
    ) -> None:
        self.path = path
        self._on_event, self._on_return, self._on_end = on_event, on_return, on_end
        self._reconnect_s = RECONNECT_S if reconnect_s is None else reconnect_s
        self._wire: Wire | None = Wire(path)
        self.greeting = self._wire.greeting
        self._changed = threading.Condition()
        self._number = 1
        self._waiting: dict[int, tuple[Any, Answered | None]] = {}  # number -> the request, and who takes its answer
        self._answers: dict[int, tuple[Any, int | None]] = {}
        self._end: WanCompatError | None = None
        self._outbox: queue.SimpleQueue[tuple[Wire, Any, int] | None] = queue.SimpleQueue()
        threading.Thread(target=self._send_posted, name="wan-compat-client-sender", daemon=True).start()
        self._reader = threading.Thread(target=self._run, name="wan-compat-client", daemon=True)
        self._reader.start()

    def ask(self, request: Any, timeout_s: float = ANSWER_S) -> tuple[Any, int | None]:
        """Send a request and wait for its answer; return it and what descriptor came along, which the caller closes.

        Raises:
            SupervisorGone: The connection ended before the answer came, and did not come back.
            DeadlineExceeded: No answer after `timeout_s`.
            WanCompatError: What the supervisor refused it with.
        """
        with self._changed:
            if self._end is not None:
                raise self._end
            self._number += 1
            number = self._number
            self._waiting[number] = (request, None)
            wire = self._wire
        if wire is not None:  # else the reader sends it, once there is a connection again
            with contextlib.suppress(OSError):
                wire.send(request, number)
        with self._changed:
            self._changed.wait_for(lambda: number in self._answers or self._end is not None, timeout_s)
            self._waiting.pop(number, None)
            answer = self._answers.pop(number, None)
            end = self._end
        if answer is None:
            raise end or DeadlineExceeded(
                f"the supervisor on {self.path} has not answered within {timeout_s:g} s",
                hint="see whether it is stopped",
            )
        if isinstance(answer[0], c.Refusal):
            raise error_of(answer[0])
        return answer

    def post(self, request: Any, answered: Answered) -> None:
        """Send a request and go on; its answer comes to `answered` in the reader's thread, if it comes.

        For `on_event` and `on_return`, which run there and must not wait.
        """
        with self._changed:
            self._number += 1
            number, wire = self._number, self._wire
            self._waiting[number] = (request, answered)
        if wire is not None:
            self._outbox.put((wire, request, number))

    @property
    def end(self) -> WanCompatError | None:
        """Why there is no connection any more, and will be none."""
        return self._end

    def close(self) -> None:
        """Hang up. Requests that wait end with SupervisorGone. Safe to call twice, and from `on_event`."""
        with self._changed:
            if self._end is None:
                self._end = SupervisorGone("the connection was closed", hint="connect again")
            self._changed.notify_all()
            wire = self._wire
        if wire is not None:
            wire.hang_up()
        if threading.current_thread() is not self._reader:
            self._reader.join(CONNECT_S)

    # -- the reader's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: WanCompatError | None = None
        while self._wire is not None:
            error = self._read_until_broken(self._wire)
            with self._changed:
                self._wire.close()
                self._wire = None
            if self._end is None and error is None and self._connect_again():
                self._on_return()
        with self._changed:
            if self._end is None:
                self._end = error or SupervisorGone(
                    f"the supervisor on {self.path} is gone",
                    hint="what was written is whole or absent; submit the job again where it is absent",
                )
            answers, self._answers = self._answers, {}
            self._changed.notify_all()
            end = self._end
        self._outbox.put(None)
        for _, descriptor in answers.values():
            if descriptor is not None:
                os.close(descriptor)
        self._on_end(end)

    def _read_until_broken(self, wire: Wire) -> WanCompatError | None:
        """Return why this connection ended, where that is more than an end."""
        try:
            while True:
                number, message, descriptor = wire.receive()
                if isinstance(message, c.JobEvent):
                    self._on_event(message)
                    continue
                if number == c.NO_REQUEST and isinstance(message, c.Refusal):
                    return error_of(message)
                with self._changed:
                    _, answered = self._waiting.pop(number, (None, _close_descriptor))
                    if answered is None:
                        self._answers[number] = (message, descriptor)
                        self._changed.notify_all()
                if answered is not None:
                    answered(message, descriptor)
        except OSError:
            return None
        except ProtocolViolation as error:
            return error

    def _connect_again(self) -> bool:
        deadline = time.monotonic() + self._reconnect_s
        pause_s = 0.05
        while time.monotonic() < deadline and self._end is None:
            try:
                wire = Wire(self.path)
            except WanCompatError:
                time.sleep(pause_s)
                pause_s = min(1.0, pause_s * 2)
                continue
            # Another process, or another run of it: jobs of the one before mean nothing to it.
            if wire.greeting.supervisor != self.greeting.supervisor:
                wire.close()
                return False
            with self._changed:
                self._wire = wire
                waiting = list(self._waiting.items())
            for number, (request, _) in waiting:
                self._outbox.put((wire, request, number))
            return True
        return False

    # -- the sender's thread

    def _send_posted(self) -> None:
        """Send what the reader posts. Were it to send by itself, it could wait for a supervisor that waits for it."""
        while (item := self._outbox.get()) is not None:
            wire, request, number = item
            with contextlib.suppress(OSError):
                wire.send(request, number)


def _close_descriptor(_message: Any, descriptor: int | None) -> None:
    """Take an answer that nobody waits for any more."""
    if descriptor is not None:
        os.close(descriptor)
