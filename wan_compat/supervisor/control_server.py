"""The control socket of a supervisor: one thread that lets other programs of the same user look, order and submit.

    listeners   Unix stream sockets, mode 0600, in folders that only this user can enter
    clients     each: its bytes in (one unfinished request), its bytes out (bounded), and what it follows
    news        jobs with new events, put here by their runners' threads, which never wait for a client

Whoever connects must have our user id (SO_PEERCRED), or is hung up on before a byte of it is read. Nobody can make this
thread wait or fill its memory: sockets do not block, requests are bounded and counted, and a client that does not read
gets no more events, which stay in the job's bounded log, and no more answers, since its next request is not read. A
client that breaks the protocol is told so and hung up on; jobs go on as if it had left.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wan_compat.protocol.errors import (
    EnvironmentLacks,
    GenerationFailed,
    ResourceExceeded,
)
from wan_compat.supervisor.wake import Wake

if TYPE_CHECKING:
    from wan_compat.protocol.codec import Codec
    from wan_compat.supervisor.control_requests import Named, Requests, Supervised
    from wan_compat.supervisor.control_visit import Visit
    from wan_compat.supervisor.kept_jobs import KeptJob

CONTROL = "control"  # name of the socket in a supervisor's runtime folder
MAX_PATH_BYTES = 107  # sun_path of unix(7), less its terminating zero
BACKLOG = 16
CLOSE_S = 5.0

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return (pid, uid) of the process at the other end, as the kernel noted them when it connected or listened."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def open_control(supervisor: Named, folder: str, *, read_only: bool) -> ControlServer:
    """Open the socket by which a supervisor is found and looked at (attach.py), and start answering.

    Raises:
        EnvironmentLacks: It cannot be made in `folder`, the supervisor's own.
    """
    server = ControlServer(supervisor, id=supervisor.id, read_only=read_only)
    try:
        server.listen(os.path.join(folder, CONTROL))
    except BaseException:
        server.close()
        raise
    server.start()
    return server


class ControlServer:
    """
    Args:
        supervisor: Whose socket this is.
        id: Its name, unique on this machine.
        serves: Takes jobs of other programs.
        read_only: Takes no orders.
        on_close: Called once the sockets are gone.
    """

    def __init__(
        self,
        supervisor: Supervised,
        *,
        id: str,
        serves: bool = False,
        read_only: bool = False,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._supervisor = supervisor
        self._on_close = on_close
        self._id, self._serves, self._read_only = id, serves, read_only
        self._listeners: dict[socket.socket, str] = {}
        self._clients: set[Visit] = set()
        self._news: deque[KeptJob] = deque()
        self._wake = Wake()
        self._selector = selectors.DefaultSelector()
        self._thread: threading.Thread | None = None
        self._closing_until: float | None = None
        self._closed = False
        # Made with the first client: its schemas cost 50 ms, which a supervisor that nobody looks at does not pay.
        self._requests: Requests | None = None
        self._codecs: tuple[Codec[Any], Codec[Any]] | None = None

    def listen(self, path: str) -> None:
        """Add a socket at `path`, which must not exist. Call before `start`.

        Raises:
            EnvironmentLacks: The path is too long, or cannot be bound.
        """
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise EnvironmentLacks(f"{path} is longer than the {MAX_PATH_BYTES} bytes that a socket's path may have")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Not by umask, which all threads share: nobody can connect before `listen`, and by then the mode is set.
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise EnvironmentLacks(f"no socket can be made at {path}: {error.strerror}") from error
        self._listeners[listener] = path
        self._selector.register(listener, selectors.EVENT_READ)

    def start(self) -> None:
        """Start answering. The thread is a daemon: it holds nothing that must be saved."""
        self._selector.register(self._wake.fd, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="wan-compat-control", daemon=True)
        self._thread.start()

    def close(self, linger_s: float = 0.0) -> None:
        """Hang up and remove the sockets, once clients were sent what they wait for, or after a moment.

        Args:
            linger_s: How long clients that are connected may still fetch results of jobs that are over.
        """
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            self._closing_until = time.monotonic() + linger_s
            self._wake.set()
            self._thread.join(linger_s + CLOSE_S)
            self._thread = None
        else:
            self._close_all()

    # -- the control thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            is_idle = False
            while not (is_idle and self._is_over()):
                is_closing = self._closing_until is not None
                ready = self._selector.select(self._patience_s())
                for key, events in ready:
                    self._serve_one(key, events)
                self._tell_news()
                self._look_after_clients()
                # Nothing is left unread that was sent before we were told to close.
                is_idle = is_closing and not ready
        finally:
            self._close_all()

    def _serve_one(self, key: selectors.SelectorKey, events: int) -> None:
        if key.fileobj == self._wake.fd:
            self._wake.clear()
        elif key.fileobj in self._listeners:
            self._accept(key.fileobj)
        else:
            client: Visit = key.data
            if events & selectors.EVENT_READ:
                client.read()
            self._advance(client)

    def _patience_s(self) -> float | None:
        """Return how long nothing can happen that a descriptor would not tell."""
        if any(client.has_more for client in self._clients):
            return 0
        if any(client.asks_too_fast for client in self._clients):
            return 0.02
        if self._closing_until is not None:
            return 0.02
        if any(not client.visitor.greeted for client in self._clients):
            return 0.1
        return None

    def _is_over(self) -> bool:
        now = time.monotonic()
        assert self._closing_until is not None
        waits = any(client.unsent or client.visitor.follows for client in self._clients)
        if waits and now < self._closing_until + 1.0:
            return False
        unfetched = bool(self._clients) and self._requests is not None and any(self._requests.kept.unfetched())
        return not (unfetched and now < self._closing_until)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # gone again, or no descriptor left; it stays in the backlog, and the jobs do not care
            time.sleep(0.01)
            return
        try:
            connection.setblocking(False)
            is_ours = peer_of(connection)[1] == os.geteuid()
        except OSError:
            is_ours = False
        if not is_ours:
            connection.close()
            return
        from wan_compat.protocol import control as c
        from wan_compat.supervisor.control_requests import Requests
        from wan_compat.supervisor.control_visit import Visit

        if self._codecs is None:
            self._codecs = (c.to_supervisor_codec(), c.from_supervisor_codec())
            self._requests = Requests(
                self._supervisor,
                id=self._id,
                serves=self._serves,
                read_only=self._read_only,
                on_news=self._note_news,
            )
        assert self._requests is not None
        client = Visit(connection, self._requests, *self._codecs)
        if len(self._clients) >= c.MAX_CLIENTS:
            client.refuse(ResourceExceeded(f"{c.MAX_CLIENTS} programs are connected already, and no more may be"))
            client.close()
            return
        self._clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _advance(self, client: Visit) -> None:
        """Let a client have what it can take, and listen for what it waits for; drop it once it is gone."""
        if client not in self._clients:
            return
        try:
            client.work()
        except Exception as error:  # noqa: BLE001 - a bug met by one client must not take the socket from all
            client.refuse(GenerationFailed(f"internal error: {type(error).__name__}: {error}"))
        if not client.open:
            self._drop(client)
            return
        wanted = (0 if client.is_held_back else selectors.EVENT_READ) | (selectors.EVENT_WRITE if client.unsent else 0)
        if wanted != client.registered:
            # Nothing to wait for: a selector has no word for that but to leave it out.
            if not wanted:
                self._selector.unregister(client.connection)
            elif client.registered:
                self._selector.modify(client.connection, wanted, client)
            else:
                self._selector.register(client.connection, wanted, client)
            client.registered = wanted

    def _tell_news(self) -> None:
        touched: dict[str, KeptJob] = {}
        while self._news:
            kept = self._news.popleft()
            touched[kept.id] = kept
        for kept in touched.values():
            assert self._requests is not None
            self._requests.kept.settle(kept)
        if touched:
            for client in list(self._clients):
                follows = client.visitor.follows
                if news := follows.keys() & touched.keys():
                    client.visitor.news |= {job_id: follows[job_id] for job_id in news}
                    self._advance(client)

    def _look_after_clients(self) -> None:
        now = time.monotonic()
        for client in [one for one in self._clients if one.has_more or one.asks_too_fast or not one.visitor.greeted]:
            if not client.visitor.greeted and now > client.greeting_deadline:
                client.close()
            self._advance(client)

    def _drop(self, client: Visit) -> None:
        if client.registered:
            self._selector.unregister(client.connection)
        client.close()
        self._clients.discard(client)
        assert self._requests is not None
        self._requests.leave(client.visitor)

    def _close_all(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        for listener, path in self._listeners.items():
            listener.close()
            with contextlib.suppress(OSError):
                os.unlink(path)
        self._listeners.clear()
        if self._requests is not None:
            self._requests.close()
        self._selector.close()
        self._wake.close()
        self._on_close()

    # -- from other threads

    def _note_news(self, kept: KeptJob) -> None:
        self._news.append(kept)
        self._wake.set()
