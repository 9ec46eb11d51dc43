"""What one worker uses, looked at from outside while it is waited for: memory, GPU memory, and whether it works.

Says why a worker must be ended; who ends it is worker.py. Silence is not watched here: that is a matter of the
conversation.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from wan_compat.policies.consumption import Consumption, Sample
from wan_compat.policies.stillness import Stillness
from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import SandboxUnavailable, WanCompatError, WorkerStalled
from wan_compat.protocol.states import WorkerState
from wan_compat.protocol.values import Value
from wan_compat.supervisor.cpu_watch import signs_of
from wan_compat.supervisor.gpu_memory import GpuWatch
from wan_compat.supervisor.memory_watch import POLL_S, MemoryWatch
from wan_compat.supervisor.worker_death import TAIL_CHARS, memory_exceeded
from wan_compat.supervisor.worker_log import BoundedLog
from wan_compat.supervisor.worker_order import WorkerOrder

CONSUMPTION_S = 1.0  # how often its consumption is looked at

# In which it was ordered to compute, and should.
ORDERED = frozenset({WorkerState.LOADING, WorkerState.GENERATING, WorkerState.OPENING, WorkerState.SENDING})


class WorkerWatch:
    """Belongs to one worker; blind until `begin`.

    Args:
        order: What the worker is started for.
        has_cgroup: The kernel bounds its memory; here it is only looked at.
    """

    def __init__(self, order: WorkerOrder, *, has_cgroup: bool) -> None:
        self._order, self._has_cgroup = order, has_cgroup
        self._pid = 0
        self._memory: MemoryWatch | None = None
        self._gpu: GpuWatch | None = None
        self._consumption = Consumption()
        self._stillness = Stillness()
        self._polled = self._sampled = time.monotonic()
        self._told: tuple[str, int] = ("", 0)  # phase and step of the last progress

    def begin(self, pid: int) -> None:
        """There is a process to watch."""
        self._pid = pid
        self._memory = MemoryWatch(pid)
        pipeline = self._order.pipeline
        may_use_gpu = pipeline is not None and pipeline.device != "cpu"
        gpu_limit = pipeline.gpu_memory_limit_bytes if pipeline is not None else None
        if may_use_gpu or gpu_limit is not None:
            self._gpu = GpuWatch(pid, gpu_limit, may_use_gpu=may_use_gpu)

    def close(self) -> None:
        if self._gpu is not None:
            self._gpu.close()

    # -- what it does --------------------------------------------------------------------------------------------

    def engaged(self) -> None:
        """It is asked for something from now on."""
        self._consumption.job_began()

    def rested(self) -> None:
        """It has nothing to do from now on."""
        self._consumption.job_ended()
        self._sampled = 0.0

    def heard(self, message: Value, now_s: float) -> None:
        """It said something else than that it is there."""
        if isinstance(message, m.ModelLoaded) and self._gpu is not None and self._order.pipeline is not None:
            self._gpu.must_show = self._order.pipeline.device != "cpu"
        self._stillness.moved()
        if not isinstance(message, m.Progress):
            self._consumption.progressed(now_s, step=False)
        elif self._told != (message.phase, message.step):
            self._told = (message.phase, message.step)
            self._consumption.progressed(now_s, step=message.phase == "denoise")

    def published(self) -> None:
        """It published a frame."""
        self._stillness.moved()
        self._consumption.progressed(time.monotonic(), step=False)

    # -- looking -------------------------------------------------------------------------------------------------

    def over_limit(self, state: WorkerState, is_ending: Callable[[], bool]) -> WanCompatError | None:
        """Look at its memory; return why it must be killed, if it must.

        Args:
            is_ending: Whether it is dead, or is within a moment.
        """
        return self._over_memory(state, is_ending) or (self._gpu.exceeded() if self._gpu is not None else None)

    def _over_memory(self, state: WorkerState, is_ending: Callable[[], bool]) -> WanCompatError | None:
        now = time.monotonic()
        if self._memory is None or now - self._polled < POLL_S:
            return None
        self._polled = now
        used = self._memory.poll()
        if self._has_cgroup:
            return None
        if used > self._order.memory_limit_bytes:
            return memory_exceeded(state, used, self._order.memory_limit_bytes)
        # Memory is given back some moments before a process counts as ended.
        if self._memory.blind and not is_ending():
            return SandboxUnavailable(
                "the worker's memory cannot be watched: /proc does not show it, and there is no cgroup to bound it",
                hint="mount /proc without hidepid, or run where a cgroup can be made (`wan-compat doctor`)",
            )
        return None

    def work(self, state: WorkerState, log: BoundedLog, stall_s: float, *, waits_for_us: bool) -> tuple[str, ...]:
        """Look what it uses, and whether it works; return what is unusual and was not before.

        Args:
            waits_for_us: Frames are there that nobody took: it may be the ring that it waits for.

        Raises:
            WorkerStalled: It has done nothing for longer than `stall_s`.
        """
        now = time.monotonic()
        if now - self._sampled < min(CONSUMPTION_S, stall_s) or self._memory is None:
            return ()
        self._sampled = now
        ordered = state in ORDERED and not waits_for_us
        signs = signs_of(self._pid, threads=ordered)
        if not ordered or self._gpu_computes():
            self._stillness.moved()
        elif (still_s := self._stillness.look(now, signs, stall_s)) is not None:
            raise WorkerStalled(
                f"the worker has done nothing for {still_s:.0f} s while {state.value}: it answers, and uses "
                "neither processor, disk nor GPU",
                fixes=(
                    "see the worker's log (--worker-log FILE); a deadlock of threads is the usual reason",
                    "if it waits for something that this machine does slowly, allow more: --phase-timeout stall=TIME",
                ),
                details={"stalled_s": round(still_s, 1), "log_tail": log.tail()[-TAIL_CHARS:]},
            )
        return self._consumption.sample(Sample(now, signs.cpu_s, self._memory.used_bytes, log.read_bytes))

    def _gpu_computes(self) -> bool:
        gpu = self._order.pipeline.gpu if self._order.pipeline is not None else None
        return gpu is not None and self._gpu is not None and self._gpu.computes(gpu.uuid)

    # -- what was seen -------------------------------------------------------------------------------------------

    @property
    def unusual(self) -> tuple[str, ...]:
        """What was unusual in its consumption when that was last looked at."""
        return self._consumption.unusual

    @property
    def peak_bytes(self) -> int:
        """The most memory that it was seen to use."""
        return self._memory.peak_bytes if self._memory is not None else 0

    @property
    def vram_bytes(self) -> int | None:
        """The GPU memory that it was last seen to use, None where it is not looked for."""
        return self._gpu.used_bytes if self._gpu is not None else None

    def used_bytes(self) -> int:
        """Return the memory that it uses now, or was last seen to use."""
        return self._memory.poll() if self._memory is not None else 0
