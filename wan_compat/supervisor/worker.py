"""One confined worker as the supervisor holds it: everything that belongs to it, and how it is ended.

Owns the control channel, frame ring, log pipe, pidfd, cgroup and socket folder of one worker. `pump` is the only place
that waits: it hears the worker, judges each message by the state machine, and watches memory, silence, forbidden system
calls and death.

Ending: `close` asks first (so that the log's tail is there to quote), then SIGKILL through the pidfd, and cgroup.kill
for whatever else is in the cgroup. In a pid namespace of its own the death of the first process takes all others along.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from wan_compat.policies.confinement import TierDecision, accept_self_test, minimum_tier, plan_confinement, plan_limits
from wan_compat.policies.consumption import Consumption, Sample
from wan_compat.policies.facts import FileFact
from wan_compat.policies.limits import Deadlines
from wan_compat.policies.policy import Policy
from wan_compat.policies.stillness import Stillness
from wan_compat.protocol import messages as m
from wan_compat.protocol.channel import Channel
from wan_compat.protocol.codec import from_worker_codec, to_worker_codec
from wan_compat.protocol.errors import (
    DeadlineExceeded,
    ForbiddenCall,
    JobCancelled,
    MemoryExceeded,
    ProtocolViolation,
    SandboxUnavailable,
    WanCompatError,
    WorkerDied,
    WorkerKilled,
    WorkerSilent,
    WorkerStalled,
)
from wan_compat.protocol.launch import SpawnWorker
from wan_compat.protocol.states import Conversation, WorkerState
from wan_compat.protocol.values import Mode, PipelineSpec, Value
from wan_compat.sandbox import cgroup as cgroups
from wan_compat.sandbox import runtime_view, seccomp_notify, selftest
from wan_compat.sandbox.spec import CONTROL_TARGET, Identity, Layer, Tier, to_wire
from wan_compat.supervisor import gpu_grant, incidents
from wan_compat.supervisor.bwrap_zygote import BwrapZygote
from wan_compat.supervisor.cpu_watch import signs_of
from wan_compat.supervisor.frame_ring import FrameRing
from wan_compat.supervisor.gpu_memory import GpuWatch
from wan_compat.supervisor.host import fresh_identity
from wan_compat.supervisor.memory_watch import POLL_S, MemoryWatch, resident_bytes
from wan_compat.supervisor.runtime import RuntimeFolder
from wan_compat.supervisor.wake import readable
from wan_compat.supervisor.worker_log import BoundedLog
from wan_compat.supervisor.zygote import Zygote

V = TypeVar("V", bound=Value)

SOCKET_NAME = "c"
PING_S = 1.0
CONSUMPTION_S = 1.0  # how often its consumption is looked at

# In which it was ordered to compute, and should.
ORDERED = frozenset({WorkerState.LOADING, WorkerState.GENERATING, WorkerState.OPENING, WorkerState.SENDING})

EXIT_S = 0.5  # longest that a process takes from giving its memory back to being ended


@dataclasses.dataclass(frozen=True)
class WorkerOrder:
    """What a worker is started for. Two jobs with equal orders can share one.

    `requested_limit_bytes` takes part in the comparison, `memory_limit_bytes` does not: without a request it follows
    from the memory that happens to be free, and a warm worker is as good as a new one. A worker that ran approved code
    serves that very tree and no safe job: mode and tree are part of the order.
    """

    admitted: tuple[FileFact, ...]
    pipeline: PipelineSpec | None  # None: nothing is built (a conversion)
    requested_limit_bytes: int | None
    memory_limit_bytes: int = dataclasses.field(compare=False)
    policy: Policy
    mode: Mode
    tree_hash: str | None = None  # of the approved repository, in trust mode
    site: str | None = None  # packages of the model's own environment, which come before the usual ones
    model: str = dataclasses.field(default="", compare=False)  # as the request named it; for people

    @property
    def threads(self) -> int:
        return self.pipeline.threads if self.pipeline is not None else 1


@dataclasses.dataclass
class Heard:
    """What one `pump` brought: messages in order, frames ready in the ring, and which extra descriptors are ready.

    unusual: What the watch over consumption sees now and did not see before.
    """

    messages: list[Value]
    frames_ready: int
    readable: frozenset[int]
    writable: frozenset[int]
    unusual: tuple[str, ...] = ()


class Worker:
    """A running worker. Use `start`, then `close` in every case.

    Belongs to one thread at a time: the runner whose job it does, or whoever took it out of the pool's idle ones. Only
    `kill` and what is read for a status may be used by any thread.
    """

    def __init__(
        self,
        name: str,
        order: WorkerOrder,
        layers: frozenset[Layer],
        runtime: RuntimeFolder,
        outer: frozenset[Layer] = frozenset(),
    ) -> None:
        self.name = name
        self.order = order
        self._ordered_layers = layers
        self.pid = 0
        self.job: str | None = None  # the one that it does now
        self.rests_since = time.monotonic()
        self.started_unix_s = time.time()
        self.ending = False
        self.wanted_tier: Tier | None = None  # until it said what it could enter
        self.tier: TierDecision | None = None
        self.layers: tuple[str, ...] = ()
        self.self_test: dict[str, bool] = {}
        self.versions: dict[str, str] = {}
        self._loaded: m.ModelLoaded | None = None
        self.jobs_started = 0
        self.downgraded_because: tuple[str, ...] = ()
        self.outer_by: str | None = None  # the program that made the namespaces and the view, if not the worker
        self._runtime = runtime
        self._conversation = Conversation()
        self._pidfd = self._listener = -1
        self._pidfd_lock = threading.Lock()
        self._dead = self._killed_on_request = False
        self._exit_status: int | None = None
        self._answered = self._pinged = self._polled = time.monotonic()
        self._nonce = self._echoed = 0
        self._consumption = Consumption()
        self._stillness = Stillness()
        self._sampled = time.monotonic()
        self._told: tuple[str, int] = ("", 0)  # phase and step of the last progress
        self._zygote: Zygote | None = None
        self._watch: MemoryWatch | None = None
        self._gpu_watch: GpuWatch | None = None
        self._cgroup: cgroups.Cgroup | None = None
        with contextlib.ExitStack() as undo:
            identity = fresh_identity()
            self._folder = runtime.make_worker_folder(name, identity)
            undo.callback(runtime.remove_worker_folder, name)
            socket_path = os.path.join(self._folder, SOCKET_NAME)
            self._channel = undo.enter_context(
                Channel(f"ipc://{socket_path}", bind=True, outgoing=to_worker_codec(), incoming=from_worker_codec())
            )
            if identity is not None:
                os.chown(socket_path, identity.uid, identity.gid)
            self.ring = FrameRing()
            undo.callback(self.ring.close)
            reader, self._log_writer = os.pipe2(os.O_CLOEXEC)
            undo.callback(self._close_log_writer)
            os.set_blocking(reader, False)
            self.log = BoundedLog(reader)
            undo.callback(self.log.close)
            limits = plan_limits(order.policy, memory_limit_bytes=order.memory_limit_bytes, threads=order.threads)
            if Layer.CGROUP in layers:
                self._cgroup = cgroups.create(f"{os.path.basename(runtime.path)}-{name}", limits)
                undo.callback(self._cgroup.remove)
            gpu = gpu_grant.grant(order.pipeline)
            self._spec = plan_confinement(
                layers=layers,
                runtime_binds=(*runtime_view.runtime_binds(order.site), *gpu.binds),
                # Through bwrap it keeps its number, which a setuid one cannot translate.
                runtime_files=(
                    *runtime_view.runtime_files(
                        Identity(os.geteuid(), os.getegid()) if outer and identity is None else identity
                    ),
                    *gpu.files,
                ),
                admitted=order.admitted,
                control_dir=self._folder,
                scratch_dir=None if Layer.VIEW in layers else runtime.make_scratch_folder(name, identity),
                scratch_bytes=order.policy.scratch_bytes,
                limits=limits,
                identity=identity,
                cgroup_dirs=self._cgroup.dirs if self._cgroup is not None else (),
                outer=outer,
                gpu=gpu.access,
            )
            self._undo = undo.pop_all()

    # -- life ----------------------------------------------------------------------------------------------------

    def make_own_zygote(self, deadlines: Deadlines, cancelled: Callable[[], bool], wake_fd: int) -> Zygote:
        """Start the zygote whose sandbox is this worker's alone; it ends with the worker.

        Raises:
            SandboxEntryFailed: bubblewrap is missing, not to be trusted, or could not make the sandbox.
        """
        zygote = BwrapZygote(self._spec, site=self.order.site)
        self._undo.callback(zygote.close)
        self.outer_by = zygote.path
        zygote.wait_ready(deadlines.zygote_s, cancelled, wake_fd)
        return zygote

    def start(self, zygote: Zygote, deadlines: Deadlines, cancelled: Callable[[], bool], wake_fd: int) -> None:
        """Fork, confine, and accept the worker; afterwards it is READY and has not seen a model byte.

        Args:
            cancelled: Asked while waiting; may raise what ends the job.
            wake_fd: Becomes readable when it is worth asking.

        Raises:
            JobCancelled: `cancelled` said so.
            SandboxEntryFailed, SandboxUnavailable: A layer failed, the self-test failed, or the tier is too low.
            WorkerStartFailed, WorkerDied, DeadlineExceeded: It did not come up.
        """
        self._zygote = zygote
        # A user namespace may have come along with what was asked for.
        self._spec = dataclasses.replace(self._spec, outer=zygote.outer)
        folder_inside = CONTROL_TARGET if Layer.VIEW in self._ordered_layers else self._folder
        pid, pidfd, self._listener = zygote.spawn(
            SpawnWorker(
                worker=self.name,
                endpoint=f"ipc://{folder_inside}/{SOCKET_NAME}",
                spec=to_wire(self._spec),
                seed=secrets.token_bytes(32),
            ),
            (*self.ring.worker_descriptors, self._log_writer),
        )
        with self._pidfd_lock:
            self.pid, self._pidfd = pid, pidfd
        if self._killed_on_request:
            self.kill()
        self.ring.close_worker_ends()
        self._close_log_writer()
        self._watch = MemoryWatch(self.pid)
        pipeline = self.order.pipeline
        may_use_gpu = pipeline is not None and pipeline.device != "cpu"
        gpu_limit = pipeline.gpu_memory_limit_bytes if pipeline is not None else None
        if may_use_gpu or gpu_limit is not None:
            self._gpu_watch = GpuWatch(self.pid, gpu_limit, may_use_gpu=may_use_gpu)
            self._undo.callback(self._gpu_watch.close)
        self._answered = time.monotonic()
        with self.noting_violations():
            self._greet(deadlines, cancelled, wake_fd)

    def _greet(self, deadlines: Deadlines, cancelled: Callable[[], bool], wake_fd: int) -> None:
        hello = self._expect(m.Hello, deadlines.start_worker_s, cancelled, wake_fd)
        if hello.protocol_version != m.PROTOCOL_VERSION:
            raise ProtocolViolation(f"the worker speaks protocol {hello.protocol_version}, not {m.PROTOCOL_VERSION}")
        self.self_test = {probe.name: probe.denied for probe in hello.probes}
        self.layers = tuple(hello.layers)
        self.versions = dict(hello.versions)
        minimum = minimum_tier(self.order.policy, self.order.mode)
        self.tier = accept_self_test(
            self.self_test, selftest.expected_denied(self._ordered_layers), hello.layers, minimum
        )
        self.send(m.Welcome())
        ready = self._expect(m.Ready, deadlines.start_worker_s, cancelled, wake_fd)
        sealed = {probe.name: probe.denied for probe in ready.probes}
        accept_self_test(sealed, selftest.expected_sealed(self._ordered_layers), hello.layers, minimum)
        self.self_test |= sealed

    def engage(self, job: str | None) -> None:
        """It is for a job from now on: `job`, where that has an id."""
        self.job = job
        self._consumption.job_began()

    def rest(self) -> None:
        """It has nothing to do from now on."""
        self.job = None
        self.rests_since = time.monotonic()
        self._consumption.job_ended()
        self._sampled = 0.0

    @property
    def unusual(self) -> tuple[str, ...]:
        """What was unusual in its consumption when that was last looked at."""
        return self._consumption.unusual

    @property
    def state(self) -> WorkerState:
        return self._conversation.state

    def loaded(self) -> m.ModelLoaded | None:
        """Return what the worker said about its model, None while it has none."""
        return self._loaded

    @property
    def alive(self) -> bool:
        return self._pidfd >= 0 and not self._dead and not self._call_is_held()

    def kill(self) -> None:
        """Kill it because somebody asked, from any thread; whoever it works for then hears WorkerKilled."""
        self._killed_on_request = True
        with self._pidfd_lock, contextlib.suppress(ProcessLookupError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def ask_to_end(self) -> bool:
        """Ask the worker to end, once; return whether it was asked and so may do it. `close` must follow."""
        if self.ending or not self.alive or self.state in (WorkerState.CONNECTING, WorkerState.GREETED):
            return self.ending
        self.ending = True
        with contextlib.suppress(WanCompatError):
            self.send(m.Shutdown())
            return True
        return False

    def close(self, grace_s: float = 0.0) -> None:
        """End the worker and remove everything that belonged to it. `grace_s` > 0 asks first."""
        self._forbidden_call()  # also one that nobody waited for, while the worker was warm
        if grace_s > 0 and self.ask_to_end():
            self._wait_death(grace_s)
            self._forbidden_call()
        self.ending = True
        self._kill()
        if self._pidfd >= 0:
            self._reaped()
            with self._pidfd_lock:
                os.close(self._pidfd)
                self._pidfd = -1
        if self._listener >= 0:
            os.close(self._listener)
            self._listener = -1
        self.log.collect()
        self._undo.close()

    def _kill(self) -> None:
        if self._pidfd >= 0 and not self._dead:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if self._cgroup is not None:
            self._cgroup.kill()
        if self._pidfd >= 0 and not self._dead:
            self._wait_death(5.0)

    def _wait_death(self, timeout_s: float) -> None:
        self._dead = bool(readable([self._pidfd], timeout_s))

    def _reaped(self) -> int | None:
        """Return the wait status that the zygote told, None if it does not."""
        if self._exit_status is None and self._zygote is not None:
            self._exit_status = self._zygote.exit_status(self.name, 1.0 if self._zygote.alive() else 0.0)
        return self._exit_status

    def _close_log_writer(self) -> None:
        if self._log_writer >= 0:
            os.close(self._log_writer)
            self._log_writer = -1

    # -- conversation --------------------------------------------------------------------------------------------

    def send(self, message: Value) -> None:
        """Send one message. Raises ProtocolViolation when it may not be sent now, DeadlineExceeded when not read."""
        self._channel.send(message, self._conversation.sending(message))

    def pump(
        self,
        timeout_s: float,
        silence_s: float = Deadlines.silence_s,
        read: Sequence[int] = (),
        write: Sequence[int] = (),
        *,
        stall_s: float = Deadlines.stall_s,
    ) -> Heard:
        """Wait up to `timeout_s` for the worker or one of the extra descriptors, and return what came.

        Args:
            silence_s: How long it may leave a ping unanswered.
            stall_s: How long it may do nothing while it should compute (policies/stillness.py).

        Raises:
            ProtocolViolation, CorruptFrame: A message or frame out of order; the caller must `close` the worker.
            ForbiddenCall: It made a flagrant system call; it is dead.
            MemoryExceeded, WorkerDied, WorkerSilent, WorkerStalled: It is dead, or must be ended.
        """
        with self.noting_violations():
            return self._pump(timeout_s, silence_s, read, write, stall_s)

    def _pump(
        self, timeout_s: float, silence_s: float, read: Sequence[int], write: Sequence[int], stall_s: float
    ) -> Heard:
        answered = self._answered
        heard = Heard(self._drain(), 0, frozenset(), frozenset())
        frames = self.ring.collect()
        # The edge-triggered ZeroMQ descriptor stays silent about what was already drained: look before waiting.
        wait_s = 0.0 if self._answered != answered else min(timeout_s, POLL_S if self._cgroup is None else 5 * POLL_S)
        poller = select.poll()
        for descriptor in {self._channel.fileno(), self.ring.fileno(), self.log.fileno(), self._listener, *read} - {-1}:
            poller.register(descriptor, select.POLLIN)
        for descriptor in write:
            poller.register(descriptor, select.POLLOUT)
        if not self._dead:
            poller.register(self._pidfd, select.POLLIN)
        if frames and write:
            wait_s = min(wait_s, POLL_S)
        events = dict(poller.poll(max(0, wait_s * 1000)))
        heard.readable = frozenset(fd for fd in read if fd in events)
        heard.writable = frozenset(fd for fd in write if fd in events)
        if self._listener in events and (forbidden := self._forbidden_call()) is not None:
            raise forbidden
        self._dead = self._dead or self._pidfd in events
        self.log.collect()
        heard.messages += self._drain()
        heard.frames_ready = self.ring.collect()
        if self._dead and not heard.messages:
            raise self._death()
        self._watch_memory()
        self._watch_gpu_memory()
        if heard.frames_ready > frames:
            self._consumption.progressed(time.monotonic(), step=False)
            self._stillness.moved()
        if not self._dead:
            heard.unusual = self._watch_work(stall_s)  # before the next ping, whose answer is no work
            self._watch_silence(silence_s)
        return heard

    def _drain(self) -> list[Value]:
        drained: list[Value] = []
        while (item := self._channel.receive_nowait()) is not None:
            seq, message = item
            self._conversation.received(seq, message)
            self._answered = time.monotonic()
            if isinstance(message, m.ModelLoaded):
                self._loaded = message
                if self._gpu_watch is not None and self.order.pipeline is not None:
                    self._gpu_watch.must_show = self.order.pipeline.device != "cpu"
            if isinstance(message, m.Pong):
                self._echoed = message.nonce
            else:
                drained.append(message)
                self._note_progress(message)
        return drained

    def listen_again(self) -> None:
        """How long nobody asked it, because something else was waited for, is not held against it."""
        self._answered = time.monotonic()

    def answers(self, timeout_s: float) -> bool:
        """Ask a worker that does nothing whether it is there; return whether it answered in time.

        For one that was idle: how long nobody asked it is not held against it.
        """
        self._answered = time.monotonic()
        deadline = self._answered + timeout_s
        with contextlib.suppress(WanCompatError):
            self._nonce += 1
            asked = self._nonce
            self.send(m.Ping(nonce=asked))
            while self._echoed != asked and (left := deadline - time.monotonic()) > 0:
                self.pump(left)
            return self._echoed == asked
        return False

    def _expect(self, kind: type[V], timeout_s: float, cancelled: Callable[[], bool], wake_fd: int) -> V:
        deadline = time.monotonic() + timeout_s
        while True:
            heard = self.pump(max(0.0, deadline - time.monotonic()), read=[wake_fd])
            if cancelled():
                raise JobCancelled("cancelled while the worker was starting")
            for message in heard.messages:
                if isinstance(message, kind):
                    return message
                raise ProtocolViolation(f"{kind.__name__} expected, {type(message).__name__} received")
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(f"the worker sent no {kind.__name__} within {timeout_s:g} s")

    # -- incidents -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def noting_violations(self) -> Iterator[None]:
        """Record a violation that rises inside as an incident; it goes on rising, with the incident in its details."""
        try:
            yield
        except ProtocolViolation as error:
            if "incident" not in error.details:
                incidents.record(incidents.violation(self.name, self.state.value, error))
            raise

    def _forbidden_call(self) -> ForbiddenCall | None:
        """Kill the worker if it waits in a forbidden call, and record that."""
        if not self._call_is_held():
            return None
        call = None
        with contextlib.suppress(OSError):  # read first: the call is gone with its thread
            call = seccomp_notify.receive_call(self._listener)
        self._kill()
        error = incidents.forbidden_call(self.name, self.state.value, call)
        incidents.record(incidents.from_json(error.details["incident"]))
        os.close(self._listener)
        self._listener = -1
        return error

    def _call_is_held(self) -> bool:
        poller = select.poll()
        if self._listener < 0:
            return False
        poller.register(self._listener, select.POLLIN)
        # POLLHUP comes too, once the last thread is gone.
        return any(event & select.POLLIN for _, event in poller.poll(0))

    # -- watching ------------------------------------------------------------------------------------------------

    def _watch_memory(self) -> None:
        now = time.monotonic()
        if self._watch is None or now - self._polled < POLL_S:
            return
        self._polled = now
        used = self._watch.poll()
        if self._cgroup is not None:
            return
        if used > self.order.memory_limit_bytes:
            self._kill()
            raise self._memory_exceeded(used)
        if self._watch.blind and not self._dead:
            self._wait_death(EXIT_S)  # memory is given back some moments before a process counts as ended
            if not self._dead:
                self._kill()
                raise SandboxUnavailable(
                    "the worker's memory cannot be watched: /proc does not show it, and there is no cgroup to bound it",
                    hint="mount /proc without hidepid, or run where a cgroup can be made (`wan-compat doctor`)",
                )

    def _watch_gpu_memory(self) -> None:
        if self._gpu_watch is not None and (error := self._gpu_watch.exceeded()) is not None:
            self._kill()
            raise error

    def _watch_silence(self, silence_s: float) -> None:
        now = time.monotonic()
        if self.state in (WorkerState.CONNECTING, WorkerState.GREETED):
            return
        silent = now - self._answered
        if silent > silence_s:
            raise WorkerSilent(
                f"the worker has not answered for {silent:.0f} s while {self.state.value}",
                hint="see the worker's log (--worker-log FILE); a stopped or hanging worker is ended",
                details={"log_tail": self.log.tail()[-2000:]},
            )
        if now - self._pinged >= PING_S:
            self._pinged = now
            self._nonce += 1
            with contextlib.suppress(DeadlineExceeded):
                self.send(m.Ping(nonce=self._nonce))

    def _watch_work(self, stall_s: float) -> tuple[str, ...]:
        """Look what it uses, and whether it works; return what is unusual and was not before."""
        now = time.monotonic()
        if now - self._sampled < min(CONSUMPTION_S, stall_s) or self._watch is None:
            return ()
        self._sampled = now
        # While frames wait for us, it may be the ring that it waits for.
        ordered = self.state in ORDERED and self.ring.published == self.ring.consumed
        signs = signs_of(self.pid, threads=ordered)
        if not ordered or self._gpu_computes():
            self._stillness.moved()
        elif (still_s := self._stillness.look(now, signs, stall_s)) is not None:
            raise WorkerStalled(
                f"the worker has done nothing for {still_s:.0f} s while {self.state.value}: it answers, and uses "
                "neither processor, disk nor GPU",
                fixes=(
                    "see the worker's log (--worker-log FILE); a deadlock of threads is the usual reason",
                    "if it waits for something that this machine does slowly, allow more: --phase-timeout stall=TIME",
                ),
                details={"stalled_s": round(still_s, 1), "log_tail": self.log.tail()[-2000:]},
            )
        return self._consumption.sample(Sample(now, signs.cpu_s, self._watch.used_bytes, self.log.read_bytes))

    def _gpu_computes(self) -> bool:
        gpu = self.order.pipeline.gpu if self.order.pipeline is not None else None
        return gpu is not None and self._gpu_watch is not None and self._gpu_watch.computes(gpu.uuid)

    def _note_progress(self, message: Value) -> None:
        self._stillness.moved()
        if not isinstance(message, m.Progress):
            self._consumption.progressed(self._answered, step=False)
        elif self._told != (message.phase, message.step):
            self._told = (message.phase, message.step)
            self._consumption.progressed(self._answered, step=message.phase == "denoise")

    def peak_bytes(self) -> int:
        """Return the most memory the worker was seen to use: the cgroup's own record where there is one."""
        peak = self._watch.peak_bytes if self._watch is not None else 0
        if self._cgroup is not None:
            peak = self._cgroup.usage().peak_bytes or peak
        return peak

    def used_now(self) -> int:
        """As `used_bytes`, for any thread: changes nothing that the watch over the worker goes by."""
        return resident_bytes(self.pid) if self.pid else 0

    @property
    def vram_bytes(self) -> int | None:
        """The GPU memory that it was last seen to use, None where it is not looked for."""
        return self._gpu_watch.used_bytes if self._gpu_watch is not None else None

    def used_bytes(self) -> int:
        """Return the memory that the worker uses now, or was last seen to use."""
        return self._watch.poll() if self._watch is not None else 0

    def _death(self) -> WanCompatError:
        self.log.collect()
        if self._killed_on_request:
            return WorkerKilled(f"the worker was killed on request while {self.state.value}")
        status = self._reaped()
        if self._cgroup is not None and self._cgroup.usage().oom_kills:
            return self._memory_exceeded(self._cgroup.usage().peak_bytes)
        tail = self.log.tail()[-2000:].strip()
        details: dict[str, object] = {"log_tail": tail}
        if status is None:
            how = "ended without a status"
        else:
            code = os.waitstatus_to_exitcode(status)
            details |= {"signal": -code} if code < 0 else {}
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        return WorkerDied(
            f"the worker {how} while {self.state.value}" + (f"; its last words: {tail[-600:]}" if tail else ""),
            hint="see what it printed with --worker-log FILE",
            details=details,
        )

    def _memory_exceeded(self, used: int) -> MemoryExceeded:
        limit = self.order.memory_limit_bytes
        return MemoryExceeded(
            f"the worker used {used / 1e9:.2f} GB of the {limit / 1e9:.2f} GB allowed while {self.state.value}",
            fixes=[
                "allow more with --memory-limit",
                "ask for fewer frames or a smaller size",
            ],
            details={"used_bytes": used, "memory_limit_bytes": limit},
        )
