"""A small supervisor for tests: starts a zygote, has workers spawned, speaks the protocol, collects frames. No torch.

Not the package's own supervisor: these tests are about the worker alone, and must fail when the worker is wrong even if
the supervisor's code would forgive it.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wan_compat.protocol import launch
from wan_compat.protocol import messages as m
from wan_compat.protocol.channel import Channel
from wan_compat.protocol.codec import from_worker_codec, to_worker_codec
from wan_compat.protocol.ring import DOORBELL_BYTES, RingLayout, pack_doorbell, unpack_doorbell
from wan_compat.protocol.states import Conversation
from wan_compat.protocol.values import ComponentSpec, FrameSpec, GenerationParams, PipelineSpec, Value
from wan_compat.sandbox import runtime_view
from wan_compat.sandbox.spec import (
    ALL_LAYERS,
    Bind,
    ConfinementSpec,
    FileIdentity,
    GpuAccess,
    Identity,
    Layer,
    Limits,
    View,
    to_wire,
)

RING_BYTES = 8 << 20
ENVIRONMENT = {
    "PATH": "/nonexistent",
    "HOME": "/scratch",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
REPLY_S = 60.0


class ZygoteProcess:
    """A real zygote under test. `with` ends it; its output is in `log`."""

    def __init__(self, folder: Path, *, light: bool = False, program: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.log = folder / "zygote.log"
        self._counter = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(REPLY_S)
        self.socket = ours
        command = [sys.executable, *(program or ("-I", "-m", "wan_compat.workers.zygote"))]
        command += ["--control-fd", str(theirs.fileno()), "--parent-pid", str(os.getpid())]
        command += ["--light"] if light else []
        started = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        self.exits: dict[str, int] = {}
        self.ready = self.receive()[0]
        assert isinstance(self.ready, launch.ZygoteReady), self.log.read_text()
        self.start_s = time.perf_counter() - started

    def receive(self) -> tuple[Any, tuple[int, ...]]:
        packet = launch.receive_packet(self.socket, "from")
        assert packet is not None, f"the zygote ended:\n{self.log.read_text()[-3000:]}"
        if isinstance(packet[0], launch.WorkerExited):
            self.exits[packet[0].worker] = packet[0].status
        return packet

    def spawn(self, model: Path, **choices: Any) -> WorkerProcess:
        """Spawn one worker for a model folder and wait until it entered."""
        self._counter += 1
        return WorkerProcess(self, f"w{self._counter}", model, **choices)

    def wait_exit(self, worker: str) -> int:
        while worker not in self.exits:
            self.receive()
        return self.exits[worker]

    def close(self) -> None:
        self.socket.close()
        try:
            self.process.wait(timeout=10)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> ZygoteProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SpawnRefused(Exception):
    def __init__(self, reply: launch.SpawnFailed) -> None:
        super().__init__(f"{reply.code} ({reply.layer}): {reply.message} {reply.fixes}")
        self.reply = reply


class WorkerProcess:
    """One worker under test, seen from its supervisor."""

    def __init__(
        self,
        zygote: ZygoteProcess,
        name: str,
        model: Path,
        *,
        confined: bool = True,
        endpoint: str | None = None,
        seed: bytes | None = None,
        memory_bytes: int = 8 << 30,
        extra_binds: tuple[Bind, ...] = (),
        gpu: GpuAccess | None = None,
    ) -> None:
        self.zygote, self.name = zygote, name
        folder = zygote.folder / name
        control = folder / "ctl"
        control.mkdir(parents=True)
        self.log = folder / "log"
        ring = os.memfd_create(f"ring-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(ring, RING_BYTES)
        self.ring = np.frombuffer(mmap.mmap(ring, RING_BYTES, prot=mmap.PROT_READ), np.uint8)
        self.doorbell, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.doorbell.setblocking(False)
        host_endpoint = f"ipc://{control}/s"
        self.channel = Channel(host_endpoint, bind=True, outgoing=to_worker_codec(), incoming=from_worker_codec())
        (control / "s").chmod(0o777)
        self.conversation = Conversation()
        self.count_memory = False
        spec = confinement(
            model,
            control,
            folder / "scratch",
            confined=confined,
            memory_bytes=memory_bytes,
            extra_binds=extra_binds,
        )
        spec = dataclasses.replace(spec, gpu=gpu)
        order = launch.SpawnWorker(
            worker=name,
            endpoint=endpoint or ("ipc:///ctl/s" if confined else host_endpoint),
            spec=to_wire(spec),
            seed=seed or os.urandom(32),
        )
        started = time.perf_counter()
        try:
            with self.log.open("wb") as log:
                launch.send_packet(zygote.socket, order, (ring, theirs.fileno(), log.fileno()))
            reply, descriptors = zygote.receive()
            while isinstance(reply, launch.WorkerExited):
                reply, descriptors = zygote.receive()
            if isinstance(reply, launch.SpawnFailed):
                raise SpawnRefused(reply)
        except BaseException:
            self.close()  # a ZeroMQ context that is collected with an open socket hangs the whole test run
            raise
        finally:
            os.close(ring)
            theirs.close()
        self.spawn_s = time.perf_counter() - started
        assert isinstance(reply, launch.WorkerSpawned) and reply.worker == name
        self.pid, (self.pidfd, *self._listener) = reply.pid, descriptors
        self._started = started

    # ---- the conversation ---------------------------------------------------------------------------------------

    def send(self, message: Value) -> None:
        self.channel.send(message, self.conversation.sending(message))

    def receive(self, timeout_s: float = REPLY_S) -> Any:
        try:
            seq, message = self.channel.receive(timeout_s)
        except Exception as error:
            raise AssertionError(f"{error}; the worker said:\n{self.log.read_text()[-3000:]}") from error
        self.conversation.received(seq, message)
        return message

    def handshake(self) -> m.Hello:
        hello = self.receive()
        self.send(m.Welcome())
        ready = self.receive()
        assert isinstance(hello, m.Hello) and isinstance(ready, m.Ready)
        self.ready_s = time.perf_counter() - self._started
        self.sealed_probes = ready.probes
        return hello

    def load(self, pipeline: PipelineSpec) -> m.ModelLoaded | m.Failed:
        self.send(m.LoadModel(pipeline=pipeline))
        while True:
            message = self.receive()
            if not isinstance(message, m.Progress):
                return message

    def start(self, model: Path, **choices: Any) -> m.ModelLoaded:
        """Handshake and load, which must succeed."""
        self.handshake()
        loaded = self.load(pipeline_spec(model, **choices))
        assert isinstance(loaded, m.ModelLoaded), (loaded, self.log.read_text()[-2000:])
        return loaded

    def generate(
        self,
        params: GenerationParams,
        job: int = 1,
        *,
        on_progress: Callable[[m.Progress], None] = lambda _: None,
        on_frame: Callable[[int], None] = lambda _: None,
        credit: bool = True,
        order: Value | None = None,
    ) -> Result:
        """Run one job to its end, whatever that is, collecting frames and giving credit at once.

        `order` is what is sent in the place of a Generate.
        """
        layout = RingLayout(params.frames)
        result = Result()
        self.send(order or m.Generate(job=job, params=params, count_memory=self.count_memory))
        deadline = time.monotonic() + REPLY_S
        poll = select.poll()
        poll.register(self.channel.fileno(), select.POLLIN)
        if credit:
            poll.register(self.doorbell, select.POLLIN)
        while result.end is None:
            assert time.monotonic() < deadline, f"no end of job {job}:\n{self.log.read_text()[-3000:]}"
            poll.poll(20)
            if credit:
                self._collect(job, layout, result, on_frame)
            item = self.channel.receive_nowait()
            if item is None:
                continue
            self.conversation.received(*item)
            message: Any = item[1]
            if isinstance(message, m.Progress):
                result.progress.append(message)
                on_progress(message)
            elif not isinstance(message, m.Pong):
                result.end = message
        self._collect(job, layout, result, on_frame)
        return result

    def _collect(self, job: int, layout: RingLayout, result: Result, on_frame: Callable[[int], None]) -> None:
        while True:
            try:
                data = self.doorbell.recv(DOORBELL_BYTES + 1)
            except BlockingIOError:
                return
            if not data:
                return
            rung_job, index = unpack_doorbell(data)
            assert (rung_job, index) == (job, len(result.frames))
            start = layout.offset(index)
            pixels = np.array(self.ring[start : start + layout.frame.frame_bytes])
            result.frames.append(pixels.reshape(layout.frame.height, layout.frame.width, 3))
            self.doorbell.send(pack_doorbell(job, len(result.frames)))
            on_frame(index)

    # ---- its end --------------------------------------------------------------------------------------------------

    def ended(self, timeout_s: float = 10.0) -> bool:
        return bool(select.select([self.pidfd], [], [], timeout_s)[0])

    def kill(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        assert self.ended()

    def close(self) -> None:
        self.channel.close()
        self.doorbell.close()
        if hasattr(self, "pidfd"):
            if not self.ended(0):
                self.kill()
            for descriptor in (self.pidfd, *self._listener):
                os.close(descriptor)

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclasses.dataclass
class Result:
    """What came of one job."""

    frames: list[Any] = dataclasses.field(default_factory=list)
    progress: list[m.Progress] = dataclasses.field(default_factory=list)
    end: Any = None

    @property
    def pixels(self) -> Any:
        """(num_frames, height, width, 3) uint8."""
        return np.stack(self.frames)


def confinement(
    model: Path,
    control: Path,
    scratch: Path,
    *,
    confined: bool,
    memory_bytes: int,
    extra_binds: tuple[Bind, ...],
) -> ConfinementSpec:
    """Return a full confinement without a cgroup, or none but the identity."""
    root = os.geteuid() == 0
    identity = Identity(61234, 61234) if root else None
    binds = (*_model_binds(model), *extra_binds)
    if not confined:
        scratch.mkdir(mode=0o777)
        scratch.chmod(0o777)
        view = View(binds=binds, host_scratch_dir=str(scratch))
        return ConfinementSpec(frozenset(), view, Limits(memory_bytes), identity)
    layers = ALL_LAYERS - {Layer.CGROUP} - ({Layer.USER_NAMESPACE} if root else set())
    view = View(
        binds=(*runtime_view.runtime_binds(), *binds),
        files=runtime_view.runtime_files(identity),
        control_dir=str(control),
    )
    return ConfinementSpec(layers, view, Limits(memory_bytes), identity)


def _model_binds(model: Path) -> Iterator[Bind]:
    for path in sorted(model.rglob("*")):
        if path.is_file():
            status = path.stat()
            identity = FileIdentity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            yield Bind(str(path), f"/model/{path.relative_to(model)}", identity)


def pipeline_spec(model: Path, **changes: Any) -> PipelineSpec:
    """Read model_index.json, as the supervisor would, into the order to load it."""
    index = json.loads((model / "model_index.json").read_text())
    components = []
    for name, value in index.items():
        if isinstance(value, list) and value[0] is not None:
            has_tensors = any((model / name).glob("*.safetensors"))
            dtype = "float32" if has_tensors else None
            components.append(
                ComponentSpec(name=name, library=value[0], class_name=value[1], subfolder=name, dtype=dtype)
            )
    fields: dict[str, Any] = {
        "pipeline_class": index["_class_name"],
        "components": tuple(components),
        "boundary_ratio": index.get("boundary_ratio"),
        "expand_timesteps": index.get("expand_timesteps", False),
        "threads": 1,
    }
    return PipelineSpec(**{**fields, **changes})


def parameters(**changes: Any) -> GenerationParams:
    """Return a small generation."""
    fields: dict[str, Any] = {
        "prompt": "a red ball bounces to the right",
        "seed": 7,
        "num_inference_steps": 3,
        "guidance_scale": 4.0,
        "max_sequence_length": 16,
        "frames": FrameSpec(height=64, width=96, num_frames=9),
    }
    return GenerationParams(**{**fields, **changes})
