"""The supervisor's side of one worker's conversation: what may be said and heard now, and whether it answers.

A ping goes out once a second while somebody waits for the worker. Its control thread answers whatever the main thread
computes, so silence means that something is wrong.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from wan_compat.protocol import messages as m
from wan_compat.protocol.channel import Channel
from wan_compat.protocol.errors import DeadlineExceeded, WorkerSilent
from wan_compat.protocol.states import Conversation, WorkerState
from wan_compat.protocol.values import Value

PING_S = 1.0


class WorkerTalk:
    """Belongs to one worker; `channel` stays its owner's.

    Attributes:
        answered_s: The moment at which it was heard last.
        loaded: What it said about its model, None while it has none.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._conversation = Conversation()
        self.answered_s = self._pinged_s = time.monotonic()
        self._nonce = self._echoed = 0
        self.loaded: m.ModelLoaded | None = None

    @property
    def state(self) -> WorkerState:
        return self._conversation.state

    def fileno(self) -> int:
        """Readable when something came; edge-triggered, so silent about what was drained already."""
        return self._channel.fileno()

    def send(self, message: Value) -> None:
        """Send one message. Raises ProtocolViolation when it may not be sent now, DeadlineExceeded when not read."""
        self._channel.send(message, self._conversation.sending(message))

    def drain(self, note: Callable[[Value, float], None]) -> list[Value]:
        """Return what came, but for answers to pings, and note each with its moment.

        Raises:
            ProtocolViolation: It may not have been said, or not now.
        """
        drained: list[Value] = []
        while (item := self._channel.receive_nowait()) is not None:
            seq, message = item
            self._conversation.received(seq, message)
            self.listen_again()
            if isinstance(message, m.ModelLoaded):
                self.loaded = message
            if isinstance(message, m.Pong):
                self._echoed = message.nonce
            else:
                drained.append(message)
                note(message, self.answered_s)
        return drained

    def listen_again(self) -> None:
        """It was heard now; or how long nobody asked it is not to be held against it."""
        self.answered_s = time.monotonic()

    def ping(self) -> int:
        """Ask whether it is there; return what `echoes` must be asked for.

        Raises:
            DeadlineExceeded: It does not read.
        """
        self._nonce += 1
        self.send(m.Ping(nonce=self._nonce))
        return self._nonce

    def echoes(self, nonce: int) -> bool:
        """Whether that ping was the last one that it answered."""
        return self._echoed == nonce

    def watch_silence(self, silence_s: float, tail: Callable[[], str]) -> None:
        """Ping it, unless that was a moment ago.

        Raises:
            WorkerSilent: It has not answered for longer than `silence_s`. `tail` is the end of its log.
        """
        now = time.monotonic()
        if self.state in (WorkerState.CONNECTING, WorkerState.GREETED):
            return
        silent = now - self.answered_s
        if silent > silence_s:
            raise WorkerSilent(
                f"the worker has not answered for {silent:.0f} s while {self.state.value}",
                hint="see the worker's log (--worker-log FILE); a stopped or hanging worker is ended",
                details={"log_tail": tail()},
            )
        if now - self._pinged_s >= PING_S:
            self._pinged_s = now
            with contextlib.suppress(DeadlineExceeded):
                self.ping()
