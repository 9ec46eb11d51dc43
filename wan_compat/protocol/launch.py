"""What supervisor and zygote say to each other: msgpack over a SEQPACKET socket pair, one packet per message.

    supervisor                                  zygote
        |  <- ZygoteReady     after its imports (or at once for the light zygote)
        |     SpawnWorker ->  with descriptors by SCM_RIGHTS, in the order of WORKER_DESCRIPTORS
        |  <- WorkerSpawned   with SPAWNED_DESCRIPTORS, after the worker entered its sandbox | SpawnFailed
        |  <- WorkerExited    when the zygote reaped it
        |     end of file ->  the zygote kills its workers and ends

Both ends are ours and the zygote never sees a model byte, so this link is not hostile; it is bounded and typed
all the same. A raw socket and not ZeroMQ: descriptors must cross, and a process that forks may own no ZeroMQ threads.
"""

from __future__ import annotations

import array
import os
import socket
from typing import Annotated, Any, Literal

import msgpack
from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from wan_compat.protocol.errors import ProtocolViolation
from wan_compat.protocol.values import Count, Seconds, Value

MAX_PACKET_BYTES = 192 << 10  # below the default socket buffer (net.core.wmem_default, 212,992)
MAX_DESCRIPTORS = 8

# The order in which a worker's descriptors travel with SpawnWorker.
WORKER_DESCRIPTORS = ("ring", "doorbell", "log")

# The order in which they come back with WorkerSpawned. The listener of forbidden calls is last, and absent where the
# kernel has none to give; such calls then kill by themselves.
SPAWNED_DESCRIPTORS = ("pidfd", "listener")

WorkerName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,40}$")]


class ZygoteReady(Value):
    type: Literal["zygote_ready"] = "zygote_ready"
    import_s: Seconds
    threads: Count
    versions: dict[str, str] = Field(max_length=32)
    # Inside another program's sandbox: what that should have denied, and did not.
    open_doors: tuple[Annotated[str, StringConstraints(max_length=64)], ...] = Field(default=(), max_length=32)


class SpawnWorker(Value):
    type: Literal["spawn_worker"] = "spawn_worker"
    worker: WorkerName
    endpoint: Annotated[str, StringConstraints(max_length=200)]  # as the worker sees it
    spec: dict[str, Any]  # sandbox.spec.to_wire(ConfinementSpec)
    seed: bytes = Field(min_length=32, max_length=32)  # fresh entropy for the worker's random generators


class WorkerSpawned(Value):
    type: Literal["worker_spawned"] = "worker_spawned"
    worker: WorkerName
    pid: int = Field(ge=1)


class SpawnFailed(Value):
    type: Literal["spawn_failed"] = "spawn_failed"
    worker: WorkerName
    code: str = Field(max_length=64)
    message: str = Field(max_length=4000)
    fixes: tuple[str, ...] = Field(default=(), max_length=8)
    layer: str | None = Field(default=None, max_length=64)


class WorkerExited(Value):
    """`status` is what waitpid gave (os.waitstatus_to_exitcode turns it into a code)."""

    type: Literal["worker_exited"] = "worker_exited"
    worker: WorkerName
    pid: int = Field(ge=1)
    status: int


ToZygote = SpawnWorker
FromZygote = Annotated[ZygoteReady | WorkerSpawned | SpawnFailed | WorkerExited, Field(discriminator="type")]

_ADAPTERS: dict[str, TypeAdapter[Any]] = {"to": TypeAdapter(ToZygote), "from": TypeAdapter(FromZygote)}


def send_packet(sock: socket.socket, message: Value, descriptors: tuple[int, ...] = ()) -> None:
    """Send one message, with descriptors. The caller keeps (and closes) its own copies of them."""
    data: bytes = msgpack.packb(message.model_dump(mode="python"), use_bin_type=True)
    if len(data) > MAX_PACKET_BYTES:
        raise ProtocolViolation(
            f"a {type(message).__name__} of {len(data)} bytes exceeds {MAX_PACKET_BYTES}",
            hint="the model folder has too many files to admit",
        )
    if descriptors:
        socket.send_fds(sock, [data], list(descriptors))
    else:
        sock.send(data)


def receive_packet(
    sock: socket.socket, direction: Literal["to", "from"], flags: int = 0
) -> tuple[Any, tuple[int, ...]] | None:
    """Receive one message and its descriptors (close-on-exec, owned by the caller); None at end of file.

    Raises:
        ProtocolViolation: Malformed or oversized; received descriptors are closed first.
        BlockingIOError: With MSG_DONTWAIT, when there is nothing.
    """
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, message_flags, _ = sock.recvmsg(MAX_PACKET_BYTES, space, flags | socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    if not data and not descriptors:
        return None
    try:
        if message_flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolViolation("packet is truncated")
        payload = msgpack.unpackb(data, raw=False, use_list=False, strict_map_key=True)
        return _ADAPTERS[direction].validate_python(payload), tuple(descriptors)
    except (ValueError, ValidationError, msgpack.exceptions.UnpackException, ProtocolViolation) as error:
        for descriptor in descriptors:
            os.close(descriptor)
        if isinstance(error, ProtocolViolation):
            raise
        raise ProtocolViolation(f"malformed packet: {type(error).__name__}") from error
