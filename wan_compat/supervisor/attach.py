"""Finding the supervisors of this user on this machine, and attaching to one: to look at it, and to give it orders.

    <runtime base>/<id>/lock       held by the living
    <runtime base>/<id>/control    where they answer

A monitor does only this. Submitting jobs to a served one is `remote.connect`.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import stat
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from wan_compat.protocol import control as c
from wan_compat.protocol.base import Value
from wan_compat.protocol.errors import ProtocolViolation
from wan_compat.supervisor.control_client import ANSWER_S, Connection
from wan_compat.supervisor.control_server import CONTROL
from wan_compat.supervisor.runtime import runtime_bases

if TYPE_CHECKING:
    from wan_compat.protocol.status import SupervisorStatus

V = TypeVar("V", bound=Value)

_POLL_S = 0.1


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a living supervisor answers. `id` is that of its status."""

    id: str
    path: str

    def attach(self) -> Attached:
        """Connect to it. Raises NotServing when it ended meanwhile, EnvironmentLacks when its version differs."""
        return Attached(self.path)


def find_supervisors() -> list[Endpoint]:
    """Return the supervisors of this user that have had a job and live, in the order of their sockets' ages.

    Raises:
        EnvironmentLacks: The runtime folder is not private.
    """
    found = []
    for folder in (os.path.join(base, name) for base in runtime_bases() for name in os.listdir(base)):
        path = os.path.join(folder, CONTROL)
        try:
            info = os.lstat(path)
            if stat.S_ISSOCK(info.st_mode) and _is_alive(folder):
                found.append((info.st_ctime, Endpoint(os.path.basename(folder), path)))
        except OSError:  # being made, being removed, or something else altogether
            continue
    return [endpoint for _, endpoint in sorted(found, key=lambda item: (item[0], item[1].id))]


def _is_alive(folder: str) -> bool:
    lock = os.open(os.path.join(folder, "lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        # Shared: two who look at the same time must not take each other for the owner.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


class Attached:
    """One supervisor of this user, seen from another program. Thread-safe.

    Every method raises SupervisorGone once it has ended, and DeadlineExceeded when it does not answer.

    Args:
        path: Of its control socket.

    Attributes:
        greeting: Who it is: id, pid, version, mode, whether it serves, whether it takes orders.
    """

    def __init__(self, path: str, *, answer_s: float = ANSWER_S) -> None:
        self._connection = Connection(path, reconnect_s=0)
        self._answer_s = answer_s
        self.greeting = self._connection.greeting

    def status(self) -> SupervisorStatus:
        return self._ask(c.GetStatus(), c.StatusReply).status

    def cancel(self, job: str) -> bool:
        """Cancel a job that waits or runs; return whether there is one of that id.

        Raises:
            RefusedByPolicy: It takes no orders. So do the methods below.
        """
        return self._ask(c.CancelJob(job=job), c.Done).done

    def kill_worker(self, worker: str) -> bool:
        """Kill a worker at once; return whether there is one of that id."""
        return self._ask(c.KillWorker(worker=worker), c.Done).done

    def pause(self) -> None:
        """Start no more jobs until `resume`."""
        self._ask(c.Pause(), c.Done)

    def resume(self) -> None:
        self._ask(c.Resume(), c.Done)

    def drain(self, timeout_s: float | None = 0.0) -> bool:
        """Let it accept no more jobs, and wait for those that it has.

        Args:
            timeout_s: How long to wait; 0 is not at all, None is until all are over.

        Returns:
            Whether nothing waits and nothing runs.
        """
        self._ask(c.Drain(), c.Done)
        return wait_until_idle(self.status, timeout_s)

    def close(self) -> None:
        """Leave it alone; it goes on."""
        self._connection.close()

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: Value, kind: type[V]) -> V:
        return ask(self._connection, request, kind, self._answer_s)


def ask(connection: Connection, request: Value, kind: type[V], timeout_s: float = ANSWER_S) -> V:
    """Ask and return an answer of this kind. Raises ProtocolViolation for one of another, and as `Connection.ask`."""
    answer, _ = connection.ask(request, timeout_s)
    if not isinstance(answer, kind):
        raise ProtocolViolation(f"a {type(request).__name__} was answered with a {type(answer).__name__}")
    return answer


def wait_until_idle(status: Callable[[], SupervisorStatus], timeout_s: float | None) -> bool:
    """Wait until nothing waits and nothing runs; return whether that is so. None: for as long as it takes."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        now = status()
        if not now.queued_count and not now.running:
            return True
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
