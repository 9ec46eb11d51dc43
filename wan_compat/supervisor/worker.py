"""One confined worker as the supervisor holds it: how it is started, heard and ended.

Owns what there is of it, and puts it together:

    worker_order.py         what it is started for
    worker_belongings.py    channel, ring, log, cgroup, the spec of its confinement: made before it, gone after it
    worker_process.py       its process, by pidfd
    worker_talk.py          what may be said and heard, and silence
    worker_watch.py         what it uses, and whether it works
    held_calls.py           forbidden system calls
    worker_death.py         the errors of its end

`pump` is the only place that waits, and where all of them are asked.

Ending: `close` asks first (so that the log's tail is there to quote), then SIGKILL through the pidfd, and cgroup.kill
for whatever else is in the cgroup. In a pid namespace of its own the death of the first process takes all others along.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import select
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from wan_compat.policies.confinement import TierDecision, accept_self_test, minimum_tier
from wan_compat.policies.limits import Deadlines
from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import (
    DeadlineExceeded,
    ForbiddenCall,
    JobCancelled,
    ProtocolViolation,
    WanCompatError,
    WorkerKilled,
)
from wan_compat.protocol.launch import SpawnWorker
from wan_compat.protocol.states import WorkerState
from wan_compat.protocol.values import Value
from wan_compat.sandbox import selftest
from wan_compat.sandbox.spec import Layer, Tier, to_wire
from wan_compat.supervisor import incidents
from wan_compat.supervisor.bwrap_zygote import BwrapZygote
from wan_compat.supervisor.held_calls import HeldCalls
from wan_compat.supervisor.memory_watch import POLL_S, resident_bytes
from wan_compat.supervisor.runtime import RuntimeFolder
from wan_compat.supervisor.worker_belongings import Belongings
from wan_compat.supervisor.worker_death import TAIL_CHARS, died, memory_exceeded
from wan_compat.supervisor.worker_order import WorkerOrder
from wan_compat.supervisor.worker_process import WorkerProcess
from wan_compat.supervisor.worker_talk import WorkerTalk
from wan_compat.supervisor.worker_watch import WorkerWatch
from wan_compat.supervisor.zygote import Zygote

V = TypeVar("V", bound=Value)

EXIT_S = 0.5  # longest that a process takes from giving its memory back to being ended


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
        self.job: str | None = None  # the one that it does now
        self.rests_since = time.monotonic()
        self.started_unix_s = time.time()
        self.ending = False
        self.wanted_tier: Tier | None = None  # until it said what it could enter
        self.tier: TierDecision | None = None
        self.layers: tuple[str, ...] = ()
        self.self_test: dict[str, bool] = {}
        self.versions: dict[str, str] = {}
        self.jobs_started = 0
        self.downgraded_because: tuple[str, ...] = ()
        self.outer_by: str | None = None  # the program that made the namespaces and the view, if not the worker
        self._runtime = runtime
        self._process = WorkerProcess()
        self._held = HeldCalls()
        self._exit_status: int | None = None
        self._zygote: Zygote | None = None
        self._own = Belongings(name, order, layers, runtime, outer)
        self._talk = WorkerTalk(self._own.channel)
        self.ring, self.log = self._own.ring, self._own.log
        self._watch = WorkerWatch(order, has_cgroup=self._own.cgroup is not None)

    # -- life ----------------------------------------------------------------------------------------------------

    def make_own_zygote(self, deadlines: Deadlines, cancelled: Callable[[], bool], wake_fd: int) -> Zygote:
        """Start the zygote whose sandbox is this worker's alone; it ends with the worker.

        Raises:
            SandboxEntryFailed: bubblewrap is missing, not to be trusted, or could not make the sandbox.
        """
        zygote = BwrapZygote(self._own.spec, site=self.order.site)
        self._own.undo.callback(zygote.close)
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
        self._own.spec = dataclasses.replace(self._own.spec, outer=zygote.outer)
        pid, pidfd, self._held.descriptor = zygote.spawn(
            SpawnWorker(
                worker=self.name,
                endpoint=self._own.endpoint,
                spec=to_wire(self._own.spec),
                seed=secrets.token_bytes(32),
            ),
            self._own.worker_descriptors,
        )
        self._process.began(pid, pidfd)
        self._own.handed_over()
        self._watch.begin(self.pid)
        self._own.undo.callback(self._watch.close)
        self._talk.listen_again()
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
        self._watch.engaged()

    def rest(self) -> None:
        """It has nothing to do from now on."""
        self.job = None
        self.rests_since = time.monotonic()
        self._watch.rested()

    @property
    def pid(self) -> int:
        """0 before there is a process."""
        return self._process.pid

    @property
    def unusual(self) -> tuple[str, ...]:
        """What was unusual in its consumption when that was last looked at."""
        return self._watch.unusual

    @property
    def state(self) -> WorkerState:
        return self._talk.state

    def loaded(self) -> m.ModelLoaded | None:
        """Return what the worker said about its model, None while it has none."""
        return self._talk.loaded

    @property
    def alive(self) -> bool:
        return self._process.lives and not self._held.waiting()

    def kill(self) -> None:
        """Kill it because somebody asked, from any thread; whoever it works for then hears WorkerKilled."""
        self._process.kill_on_request()

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
            self._process.wait(grace_s)
            self._forbidden_call()
        self.ending = True
        self._kill()
        if self._process.pidfd >= 0:
            self._reaped()
        self._process.close()
        self._held.close()
        self.log.collect()
        self._own.close()

    def _kill(self) -> None:
        self._process.kill()
        if self._own.cgroup is not None:
            self._own.cgroup.kill()
        if self._process.lives:
            self._process.wait(5.0)

    def _reaped(self) -> int | None:
        """Return the wait status that the zygote told, None if it does not."""
        if self._exit_status is None and self._zygote is not None:
            self._exit_status = self._zygote.exit_status(self.name, 1.0 if self._zygote.alive() else 0.0)
        return self._exit_status

    # -- conversation --------------------------------------------------------------------------------------------

    def send(self, message: Value) -> None:
        """Send one message. Raises ProtocolViolation when it may not be sent now, DeadlineExceeded when not read."""
        self._talk.send(message)

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
        answered_s = self._talk.answered_s
        heard = Heard(self._talk.drain(self._watch.heard), 0, frozenset(), frozenset())
        frames = self.ring.collect()
        # The edge-triggered ZeroMQ descriptor stays silent about what was already drained: look before waiting.
        often_s = POLL_S if self._own.cgroup is None else 5 * POLL_S
        wait_s = 0.0 if self._talk.answered_s != answered_s else min(timeout_s, often_s)
        poller = select.poll()
        own = {self._talk.fileno(), self.ring.fileno(), self.log.fileno(), self._held.descriptor}
        for descriptor in {*own, *read} - {-1}:
            poller.register(descriptor, select.POLLIN)
        for descriptor in write:
            poller.register(descriptor, select.POLLOUT)
        if not self._process.dead:
            poller.register(self._process.pidfd, select.POLLIN)
        if frames and write:
            wait_s = min(wait_s, POLL_S)
        events = dict(poller.poll(max(0, wait_s * 1000)))
        heard.readable = frozenset(fd for fd in read if fd in events)
        heard.writable = frozenset(fd for fd in write if fd in events)
        if self._held.descriptor in events and (forbidden := self._forbidden_call()) is not None:
            raise forbidden
        self._process.dead = self._process.dead or self._process.pidfd in events
        self.log.collect()
        heard.messages += self._talk.drain(self._watch.heard)
        heard.frames_ready = self.ring.collect()
        if self._process.dead and not heard.messages:
            raise self._death()
        if (over := self._watch.over_limit(self.state, self._is_ending)) is not None:
            self._kill()
            raise over
        if heard.frames_ready > frames:
            self._watch.published()
        if not self._process.dead:
            waiting = self.ring.published > self.ring.consumed
            # Before the next ping, whose answer is no work.
            heard.unusual = self._watch.work(self.state, self.log, stall_s, waits_for_us=waiting)
            self._talk.watch_silence(silence_s, lambda: self.log.tail()[-TAIL_CHARS:])
        return heard

    def listen_again(self) -> None:
        """How long nobody asked it, because something else was waited for, is not held against it."""
        self._talk.listen_again()

    def answers(self, timeout_s: float) -> bool:
        """Ask a worker that does nothing whether it is there; return whether it answered in time.

        For one that was idle: how long nobody asked it is not held against it.
        """
        self._talk.listen_again()
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(WanCompatError):
            asked = self._talk.ping()
            while not self._talk.echoes(asked) and (left := deadline - time.monotonic()) > 0:
                self.pump(left)
            return self._talk.echoes(asked)
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
        if not self._held.waiting():
            return None
        call = self._held.read()
        self._kill()
        error = incidents.forbidden_call(self.name, self.state.value, call)
        incidents.record(incidents.from_json(error.details["incident"]))
        self._held.close()
        return error

    # -- what it uses --------------------------------------------------------------------------------------------

    def peak_bytes(self) -> int:
        """Return the most memory the worker was seen to use: the cgroup's own record where there is one."""
        cgroup = self._own.cgroup
        return (cgroup.usage().peak_bytes if cgroup is not None else 0) or self._watch.peak_bytes

    def used_now(self) -> int:
        """As `used_bytes`, for any thread: changes nothing that the watch over the worker goes by."""
        return resident_bytes(self.pid) if self.pid else 0

    @property
    def vram_bytes(self) -> int | None:
        """The GPU memory that it was last seen to use, None where it is not looked for."""
        return self._watch.vram_bytes

    def used_bytes(self) -> int:
        """Return the memory that the worker uses now, or was last seen to use."""
        return self._watch.used_bytes()

    # -- its end, unasked ----------------------------------------------------------------------------------------

    def _is_ending(self) -> bool:
        return self._process.dead or self._process.wait(EXIT_S)

    def _death(self) -> WanCompatError:
        self.log.collect()
        if self._process.killed_on_request:
            return WorkerKilled(f"the worker was killed on request while {self.state.value}")
        status = self._reaped()
        usage = self._own.cgroup.usage() if self._own.cgroup is not None else None
        if usage is not None and usage.oom_kills:
            return memory_exceeded(self.state, usage.peak_bytes, self.order.memory_limit_bytes)
        return died(self.state, status, self.log.tail())
