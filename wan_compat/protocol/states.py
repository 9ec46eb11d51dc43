"""The state of one worker, as the supervisor sees it, and which message is permitted in which state.

    CONNECTING --Hello--> GREETED --Ready--> READY --(LoadModel sent)--> LOADING --ModelLoaded--> LOADED
                                               ^------------Failed---------'  |                    |  ^
                                                                                (Generate sent)    |  |
                                                    GENERATING <-----------------------------------'  |
                                                        '------Generated | Failed | Cancelled---------'

    DecodeAgain goes the way of Generate, LoadPart that of LoadModel, and PartLoaded leads back to READY.

    READY --(OpenWeights sent)--> OPENING --WeightsOpened--> OPENED --(SendTensors sent)--> SENDING
      ^------------Failed-----------'                          ^---TensorsSent | Failed | Cancelled---'

Like the dispatch table of OpenSSH's monitor: what is not in the table is refused. The same machine runs on both
sides; on the supervisor's it is protection, on the worker's it finds bugs.
"""

from __future__ import annotations

import enum

from wan_compat.protocol import messages as m
from wan_compat.protocol.conversion import MAX_TENSORS
from wan_compat.protocol.errors import ProtocolViolation
from wan_compat.protocol.values import Value


class WorkerState(enum.StrEnum):
    CONNECTING = "connecting"
    GREETED = "greeted"
    READY = "ready"
    LOADING = "loading"
    LOADED = "loaded"
    GENERATING = "generating"
    OPENING = "opening"
    OPENED = "opened"
    SENDING = "sending"


S = WorkerState

RECEIVE: dict[WorkerState, dict[type[Value], WorkerState]] = {
    S.CONNECTING: {m.Hello: S.GREETED},
    S.GREETED: {m.Ready: S.READY},
    S.READY: {m.Pong: S.READY},
    S.LOADING: {
        m.Progress: S.LOADING,
        m.ModelLoaded: S.LOADED,
        m.PartLoaded: S.READY,
        m.Failed: S.READY,
        m.Pong: S.LOADING,
    },
    S.LOADED: {m.Pong: S.LOADED},
    S.GENERATING: {
        m.Progress: S.GENERATING,
        m.Generated: S.LOADED,
        m.Failed: S.LOADED,
        m.Cancelled: S.LOADED,
        m.Pong: S.GENERATING,
    },
    S.OPENING: {m.TensorsListed: S.OPENING, m.WeightsOpened: S.OPENED, m.Failed: S.READY, m.Pong: S.OPENING},
    S.OPENED: {m.Pong: S.OPENED},
    S.SENDING: {m.TensorsSent: S.OPENED, m.Failed: S.OPENED, m.Cancelled: S.OPENED, m.Pong: S.SENDING},
}

SEND: dict[WorkerState, dict[type[Value], WorkerState]] = {
    S.CONNECTING: {},
    S.GREETED: {m.Welcome: S.GREETED},
    S.READY: {
        m.LoadModel: S.LOADING,
        m.LoadPart: S.LOADING,
        m.OpenWeights: S.OPENING,
        m.Ping: S.READY,
        m.Shutdown: S.READY,
    },
    S.LOADING: {m.Ping: S.LOADING, m.Cancel: S.LOADING, m.Shutdown: S.LOADING},
    S.LOADED: {
        m.Generate: S.GENERATING,
        m.DecodeAgain: S.GENERATING,
        m.Ping: S.LOADED,
        m.Cancel: S.LOADED,
        m.Shutdown: S.LOADED,
    },
    S.GENERATING: {m.Ping: S.GENERATING, m.Cancel: S.GENERATING, m.Shutdown: S.GENERATING},
    S.OPENING: {m.Ping: S.OPENING, m.Cancel: S.OPENING, m.Shutdown: S.OPENING},
    S.OPENED: {m.SendTensors: S.SENDING, m.Ping: S.OPENED, m.Cancel: S.OPENED, m.Shutdown: S.OPENED},
    S.SENDING: {m.Ping: S.SENDING, m.Cancel: S.SENDING, m.Shutdown: S.SENDING},
}


# Which phases a worker may report, in the order in which they come: none is gone back to, so that what a worker can say
# in one job has an end, and with it what a reader of events must keep.
PHASES: dict[WorkerState, tuple[str, ...]] = {
    S.LOADING: ("load",),
    S.GENERATING: ("text_encode", "denoise", "decode"),
}
MAX_STEPS_OF_PHASE = 10_000  # ten times the most denoising steps, or latent frames, of any permitted job

# One a second is sent; a worker that talks and yet answers none is broken, or wants our memory of them to grow.
MAX_UNANSWERED_PINGS = 1024


class Conversation:
    """State and sequence numbers of one worker. First violation raises; the caller ends that worker only."""

    def __init__(self) -> None:
        self.state = WorkerState.CONNECTING
        self.job = 0
        self._received = 0
        self._sent = 0
        self._pings: set[int] = set()
        self._progress: tuple[str, int] = ("", 0)
        self._listed = 0
        self._part = False  # a part was asked for, and not the model

    def sending(self, message: Value) -> int:
        """Check that `message` may be sent now, move on, and return its sequence number."""
        permitted = SEND[self.state]
        if type(message) not in permitted:
            raise ProtocolViolation(f"{type(message).__name__} may not be sent while {self.state.value}")
        self.state = permitted[type(message)]
        if isinstance(message, m.Generate | m.DecodeAgain | m.SendTensors):
            self.job = message.job
        elif isinstance(message, m.LoadModel | m.LoadPart | m.OpenWeights):
            self.job = 0
            self._part = isinstance(message, m.LoadPart)
        elif isinstance(message, m.Ping):
            if len(self._pings) >= MAX_UNANSWERED_PINGS:
                raise ProtocolViolation(f"the worker has not answered {len(self._pings)} pings")
            self._pings.add(message.nonce)
        if isinstance(message, m.Generate | m.DecodeAgain | m.LoadModel | m.LoadPart):
            self._progress = ("", 0)
        self._sent += 1
        return self._sent

    def received(self, seq: int, message: Value) -> None:
        """Check that `message` is the next one and permitted now, and move on."""
        if seq != self._received + 1:
            raise ProtocolViolation(f"sequence number {self._received + 1} expected, {seq} received")
        permitted = RECEIVE[self.state]
        if type(message) not in permitted:
            raise ProtocolViolation(f"{type(message).__name__} is not permitted while {self.state.value}")
        about_a_job = m.Progress | m.Failed | m.Generated | m.TensorsSent | m.Cancelled
        if isinstance(message, about_a_job) and message.job != self.job:
            raise ProtocolViolation(f"{type(message).__name__} for job {message.job}, but job {self.job} is running")
        if isinstance(message, m.ModelLoaded | m.PartLoaded) and isinstance(message, m.PartLoaded) != self._part:
            raise ProtocolViolation(f"{type(message).__name__} is no answer to what was asked for")
        if isinstance(message, m.TensorsListed):
            # An empty list counts too, or it could be repeated for ever.
            self._listed += max(1, len(message.tensors))
            if self._listed > MAX_TENSORS:
                raise ProtocolViolation(f"the worker listed more than {MAX_TENSORS} tensors")
        if isinstance(message, m.Pong):
            if message.nonce not in self._pings:
                raise ProtocolViolation("Pong without Ping")
            self._pings.discard(message.nonce)
        if isinstance(message, m.Progress):
            self._check_progress(message)
        self._received = seq
        self.state = permitted[type(message)]

    def _check_progress(self, message: m.Progress) -> None:
        phases = PHASES[self.state]
        if message.phase not in phases:
            raise ProtocolViolation(f"progress of {message.phase} is not permitted while {self.state.value}")
        if not 1 <= message.step <= message.total:
            raise ProtocolViolation(f"progress {message.step} of {message.total}")
        if message.total > MAX_STEPS_OF_PHASE:
            raise ProtocolViolation(f"progress of {message.total} steps, more than any phase has")
        phase, step = self._progress
        if message.phase == phase and message.step <= step:
            raise ProtocolViolation(f"progress of {message.phase} went from {step} to {message.step}")
        if phase and phases.index(message.phase) < phases.index(phase):
            raise ProtocolViolation(f"progress went from {phase} back to {message.phase}")
        self._progress = (message.phase, message.step)
