"""The control thread: answers at once, whatever the main thread computes.

    main thread                     control thread                    supervisor
       | post(message) -- queue, wake -> |  ---------- channel ---------> |
       | receive()  <------- queue ----  |  <--------------------------- |
       | cancellation <----------------- |  <-- Cancel                    |
       |                                 |  <-- Ping, Pong -->            |

It owns the channel (a ZeroMQ socket belongs to one thread). PyTorch releases the interpreter while it computes, so a
Pong is late by milliseconds even during a step of minutes, and silence means that something is wrong.

When it ends, the process ends, at once and without cleaning up: nobody is left to work for, and nothing of a worker is
worth saving. The doorbell's end of file tells that the supervisor is gone; ZeroMQ alone would not.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import sys
import threading
import traceback
from typing import Any

from wan_compat.protocol import messages as m
from wan_compat.protocol.channel import Channel
from wan_compat.protocol.codec import from_worker_codec, to_worker_codec
from wan_compat.protocol.errors import ProtocolViolation, WanCompatError
from wan_compat.protocol.states import Conversation
from wan_compat.protocol.values import Value
from wan_compat.protocol.zmq_end import ZmqEnd as _ZmqEnd  # noqa: F401 - Channel imports it late; here the zygote has it
from wan_compat.workers.cancellation import Cancellation

EXIT_SHUTDOWN = 0
EXIT_LOST = 70  # the supervisor is gone, or one side broke the protocol

# Built here, so that the zygote's import builds their validators once for all workers.
_OUTGOING, _INCOMING = from_worker_codec(), to_worker_codec()

_POLL_MS = 1000  # everything wakes the poll; this only bounds what a lost edge of ZMQ_FD could cost


class Control:
    """One worker's conversation. Made by the main thread before `seal`, since it needs sockets and descriptors."""

    def __init__(self, endpoint: str, doorbell_fd: int, cancellation: Cancellation) -> None:
        self._endpoint = endpoint
        self._doorbell_fd = doorbell_fd
        self._cancellation = cancellation
        self._outbox: queue.SimpleQueue[Value] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[Value] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # The supervisor's own state machine, from the other side: there it protects, here it finds our bugs.
        self._conversation = Conversation()
        self._sent = self._received = 0
        self._running_job: int | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="control", daemon=True).start()

    def post(self, message: Value) -> None:
        """Hand one message over for sending. Any thread; never blocks."""
        self._outbox.put(message)
        os.eventfd_write(self._wake, 1)

    def receive(self) -> Value:
        """Wait for the next message that is the main thread's: Welcome, or an order to do something."""
        return self._inbox.get()

    def _run(self) -> None:
        status = EXIT_LOST
        try:
            with Channel(self._endpoint, bind=False, outgoing=_OUTGOING, incoming=_INCOMING) as channel:
                self._converse(channel)
            status = EXIT_SHUTDOWN
        except WanCompatError as error:
            print(f"worker: {error.code}: {error.message}", file=sys.stderr)
        except BaseException:  # noqa: BLE001 - the last frame of this thread, and so of the process
            traceback.print_exc()
        finally:
            os._exit(status)

    def _converse(self, channel: Channel) -> None:
        poll = select.poll()
        poll.register(channel.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        poll.register(self._doorbell_fd, 0)  # only its hang-up, which is always reported; its data is the writer's
        while True:
            # ZMQ_FD is edge-triggered and sending can consume the edge: sleep only after a round that did nothing.
            busy = True
            while busy:
                item = channel.receive_nowait()
                busy = item is not None
                if item is not None and not self._handle(channel, *item):
                    return
                busy = self._send_posted(channel) or busy
            for descriptor, events in poll.poll(_POLL_MS):
                if descriptor == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(self._wake)
                elif descriptor == self._doorbell_fd and events & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
                    raise ProtocolViolation("the supervisor is gone")

    def _handle(self, channel: Channel, seq: int, message: Value) -> bool:
        """Act on one message; return False at Shutdown."""
        self._received += 1
        if seq != self._received:
            raise ProtocolViolation(f"sequence number {self._received} expected, {seq} received")
        if isinstance(message, m.Cancel):
            # Permitted always: a job may have ended while its Cancel was on its way.
            if message.job == self._running_job:
                self._cancellation.request()
            return True
        self._conversation.sending(message)
        if isinstance(message, m.Shutdown):
            return False
        if isinstance(message, m.Ping):
            self._send(channel, m.Pong(nonce=message.nonce))
            return True
        if isinstance(message, m.Generate | m.DecodeAgain | m.SendTensors):
            self._running_job = message.job
        elif isinstance(message, m.LoadModel | m.LoadPart | m.OpenWeights):
            self._running_job = 0
        if not isinstance(message, m.Welcome):
            self._cancellation.clear()  # the main thread is idle: no check can fall between
        self._inbox.put(message)
        return True

    def _send_posted(self, channel: Channel) -> bool:
        sent = False
        with contextlib.suppress(queue.Empty):
            while True:
                message: Any = self._outbox.get_nowait()
                ends = (
                    m.ModelLoaded
                    | m.PartLoaded
                    | m.Generated
                    | m.WeightsOpened
                    | m.TensorsSent
                    | m.Failed
                    | m.Cancelled
                )
                if isinstance(message, ends):
                    self._running_job = None
                self._send(channel, message)
                sent = True
        return sent

    def _send(self, channel: Channel, message: Value) -> None:
        self._sent += 1
        self._conversation.received(self._sent, message)
        channel.send(message, self._sent)
