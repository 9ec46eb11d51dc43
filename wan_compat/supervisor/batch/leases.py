"""Who makes which item: files that one process can make and all can see, on one disk that several machines may share.

    KEY.1      made with O_EXCL by who claims the item; its modification time is renewed every BEAT_S
    KEY.2      made by who takes KEY.1 over, because its owner is dead or was not heard of for STALE_S

A lease holds while it has the highest number of its key. Taking over is making the next number: of several that try,
one succeeds, and the old owner sees that it lost. A name that was freed meanwhile could be claimed twice, once as KEY.1
and once as the next number; so who made a file looks again, and gives it back unless the very file below it, which was
found stale, still stands as it was, and none above it does.

An owner that only slept and wakes up finishes for nothing: outputs get their names without replacing anything, and it
hears here that the item is no longer its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable

from wan_compat.protocol.errors import OutputNotWritable, clean_text

BEAT_S = 10.0
# Six beats missed. Longer than a pause of a busy file server, shorter than anybody's patience.
STALE_S = 60.0
MAX_LEASE_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process on a machine. `place` is the machine since its start and the space of process ids there: only within
    it does a process id say anything."""

    run: str
    host: str
    place: str
    pid: int
    born: str  # the process' start, in the kernel's ticks: ids are used again

    @classmethod
    def this_process(cls) -> Owner:
        boot = _text("/proc/sys/kernel/random/boot_id")
        with contextlib.suppress(OSError):
            boot += f" {os.readlink('/proc/self/ns/pid')}"
        pid = os.getpid()
        return cls(secrets.token_hex(4), socket.gethostname(), boot, pid, _born(pid))

    def is_dead(self, asking: Owner) -> bool:
        """Whether it certainly is; what runs elsewhere never certainly is."""
        return self.place == asking.place and _born(self.pid) != self.born


@dataclasses.dataclass(frozen=True)
class Lease:
    """`path` of a lease; `owner` is None while its content is not there yet, or is nothing that we wrote."""

    key: str
    number: int
    path: str
    owner: Owner | None
    renewed: float
    identity: tuple[int, int]  # inode and time: another file of the same name, or a renewed one, has others


class Leases:
    """The leases of one folder, for one process. Renews its own from a thread of its own; close it.

    Args:
        lost: Called with the key of an own lease that somebody took over, from that thread.
    """

    def __init__(
        self,
        folder: str,
        owner: Owner,
        *,
        stale_s: float = STALE_S,
        beat_s: float = BEAT_S,
        lost: Callable[[str], None] = lambda _key: None,
    ) -> None:
        self.owner = owner
        self._folder, self._stale_s, self._beat_s = folder, stale_s, beat_s
        self._lost = lost
        self._mine: dict[str, str] = {}  # key -> path
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="wan-compat-leases", daemon=True)
        self._thread.start()

    def claim(self, key: str) -> bool:
        """Try to make an item this process' own; False while it is another's.

        Raises:
            OutputNotWritable: The folder cannot be written.
        """
        standing = [lease for lease in read_leases(self._folder) if lease.key == key]
        highest = max(standing, key=lambda lease: lease.number, default=None)
        if highest is not None and not self._is_stale(highest):
            return False
        number = 1 if highest is None else highest.number + 1
        path = os.path.join(self._folder, f"{key}.{number}")
        if not self._make(path):
            return False
        again = {lease.number: lease.identity for lease in read_leases(self._folder) if lease.key == key}
        below_is_another = highest is not None and again.get(highest.number) != highest.identity
        if max(again, default=0) != number or below_is_another:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return False
        with self._lock:
            self._mine[key] = path
        for lease in standing:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(lease.path)
        return True

    def holds(self, key: str) -> bool:
        """Whether an item is this process' own now."""
        with self._lock:
            path = self._mine.get(key)
        return path is not None and self._is_highest(key, path)

    def release(self, key: str) -> None:
        with self._lock:
            path = self._mine.pop(key, None)
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def sweep(self, is_over: Callable[[str], bool]) -> None:
        """Remove leases that do not hold, of items that nobody will claim again: their owner died in between."""
        for lease in read_leases(self._folder):
            if is_over(lease.key) and self._is_stale(lease):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(lease.path)

    def close(self) -> None:
        """Release all that is held."""
        self._over.set()
        self._thread.join()
        for key in list(self._mine):
            self.release(key)

    def _make(self, path: str) -> bool:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return False
        except OSError as error:
            raise OutputNotWritable(f"{path!r} cannot be made: {error.strerror}") from error
        try:
            # On a full disk it stays empty: then only its age tells whether it holds.
            with contextlib.suppress(OSError):
                os.write(descriptor, json.dumps(dataclasses.asdict(self.owner)).encode())
        finally:
            os.close(descriptor)
        return True

    def _is_stale(self, lease: Lease) -> bool:
        if lease.owner is not None and lease.owner.is_dead(self.owner):
            return True
        return self._now() - lease.renewed > self._stale_s

    def _now(self) -> float:
        """Return the time by the clock that the leases' times are of: the file server's, not this machine's."""
        path = os.path.join(self._folder, f"clock.{self.owner.run}")
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                os.utime(descriptor)
                return os.fstat(descriptor).st_mtime
            finally:
                os.close(descriptor)
                os.unlink(path)
        except OSError:
            return time.time()

    def _is_highest(self, key: str, path: str) -> bool:
        numbers = [(lease.number, lease.path) for lease in read_leases(self._folder) if lease.key == key]
        return max(numbers, default=(0, ""))[1] == path

    def _renew(self) -> None:
        while not self._over.wait(self._beat_s):
            with self._lock:
                mine = dict(self._mine)
            for key, path in mine.items():
                with contextlib.suppress(OSError):
                    os.utime(path, follow_symlinks=False)
                if not self._is_highest(key, path):
                    with self._lock:
                        self._mine.pop(key, None)
                    self._lost(key)


def read_leases(folder: str) -> list[Lease]:
    """Return all leases that stand in a folder, live or not."""
    found: list[Lease] = []
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return found
    for name in names:
        key, _, number = name.partition(".")
        if not number.isdecimal() or len(number) > 9:
            continue
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):  # released meanwhile
            status = os.lstat(path)
            identity = (status.st_ino, status.st_mtime_ns)
            found.append(Lease(key, int(number), path, _read_owner(path), status.st_mtime, identity))
    return found


def live_leases(folder: str, *, stale_s: float = STALE_S) -> dict[str, Lease]:
    """Return the leases that hold, by key, as far as one can tell without writing: by this machine's clock."""
    asking = Owner.this_process()
    found: dict[str, Lease] = {}
    for lease in read_leases(folder):
        dead = lease.owner is not None and lease.owner.is_dead(asking)
        if not dead and time.time() - lease.renewed <= stale_s:
            known = found.get(lease.key)
            if known is None or known.number < lease.number:
                found[lease.key] = lease
    return found


def _read_owner(path: str) -> Owner | None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        raw = os.read(descriptor, MAX_LEASE_BYTES)
    finally:
        os.close(descriptor)
    try:
        fields = json.loads(raw)
        texts = {name: clean_text(str(fields[name]), 200) for name in ("run", "host", "place", "born")}
        return Owner(pid=int(fields["pid"]), **texts)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _born(pid: int) -> str:
    """Return when a process started, empty where there is none."""
    # Field 22 of stat; the name in field 2 may have spaces and brackets in it.
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return ""
