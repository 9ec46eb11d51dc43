"""Two ends of a control channel: bounded, with deadlines, never hanging."""

import os
import subprocess
import sys
import time

import pytest
import zmq

from tests.protocol.test_codec import HELLO_BYTES, SAMPLES_FROM_WORKER
from wan_compat.protocol import codec
from wan_compat.protocol import messages as m
from wan_compat.protocol.channel import BURST, RATE_PER_S, SEND_TIMEOUT_S, Channel
from wan_compat.protocol.errors import DeadlineExceeded, InvalidRequest, ProtocolViolation


def greet(supervisor_end):
    """Let the handshake happen; a supervisor does that in its pump, and has no thread for it."""
    with pytest.raises(DeadlineExceeded):
        supervisor_end.receive(0.2)
    assert supervisor_end._end._reader.established


@pytest.fixture
def endpoint(tmp_path_factory):
    return f"ipc://{tmp_path_factory.mktemp('c')}/s"


@pytest.fixture
def supervisor_end(endpoint):
    with Channel(endpoint, bind=True, outgoing=codec.to_worker_codec(), incoming=codec.from_worker_codec()) as channel:
        yield channel


@pytest.fixture
def worker_end(endpoint, supervisor_end):
    with Channel(endpoint, bind=False, outgoing=codec.from_worker_codec(), incoming=codec.to_worker_codec()) as channel:
        greet(supervisor_end)
        yield channel


@pytest.fixture
def raw_peer(endpoint, supervisor_end):
    """A worker that speaks ZeroMQ but not our protocol."""
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(endpoint)
    yield socket
    context.destroy(0)


def test_messages_arrive_in_order_both_ways(supervisor_end, worker_end):
    for seq, message in enumerate(SAMPLES_FROM_WORKER, 1):
        worker_end.send(message, seq)
    for seq, message in enumerate(SAMPLES_FROM_WORKER, 1):
        assert supervisor_end.receive(5) == (seq, message)
    supervisor_end.send(m.Ping(nonce=3), 1)
    assert worker_end.receive(5) == (1, m.Ping(nonce=3))


def test_silence_is_a_deadline_not_a_hang(supervisor_end):
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        supervisor_end.receive(0.2)
    assert 0.1 < time.monotonic() - began < 2


def test_peer_that_does_not_read_makes_send_fail_with_bounded_memory(supervisor_end, worker_end):
    # The worker's end never reads: its queue and the socket's buffer fill, then `send` gives up.
    with pytest.raises(DeadlineExceeded):
        for seq in range(1, 20_000):
            supervisor_end.send(m.Ping(nonce=seq), seq)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        supervisor_end.send(m.Ping(nonce=1), 1)
    assert time.monotonic() - began < SEND_TIMEOUT_S / 2  # not waited for twice


def test_message_of_several_parts_is_a_violation(supervisor_end, raw_peer):
    raw_peer.send_multipart([HELLO_BYTES, HELLO_BYTES])
    with pytest.raises(ProtocolViolation):
        supervisor_end.receive(5)


def test_oversized_message_is_a_violation_before_it_is_read(supervisor_end, raw_peer):
    raw_peer.send(b"x" * (codec.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(ProtocolViolation, match="exceeds"):
        supervisor_end.receive(5)


def test_largest_message_passes(supervisor_end, raw_peer):
    raw_peer.send(b"\xc1" * codec.MAX_MESSAGE_BYTES)
    with pytest.raises(ProtocolViolation, match="not allowed"):  # says the codec, so it came through whole
        supervisor_end.receive(5)


def test_flood_of_messages_is_read_at_a_bounded_rate_and_blocks_the_peer(supervisor_end, raw_peer):
    raw_peer.setsockopt(zmq.SNDTIMEO, 200)
    greet(supervisor_end)
    sent = heard = 0
    began = time.monotonic()
    while time.monotonic() - began < 2:
        try:
            while sent < 200_000:
                raw_peer.send(codec.from_worker_codec().encode(m.Pong(nonce=sent), 1), zmq.NOBLOCK)
                sent += 1
        except zmq.Again:
            pass
        while supervisor_end.receive_nowait():
            heard += 1
        time.sleep(0.005)
    took = time.monotonic() - began
    assert BURST <= heard <= BURST + RATE_PER_S * took
    assert sent < heard + 20_000  # the rest waits at the peer


def test_peer_that_hangs_up_is_not_polled_any_more(supervisor_end, worker_end):
    worker_end.send(m.Pong(nonce=1), 1)
    assert supervisor_end.receive(5)[1] == m.Pong(nonce=1)
    worker_end.close()
    with pytest.raises(DeadlineExceeded):
        supervisor_end.receive(0.2)
    assert supervisor_end.fileno() == -1
    supervisor_end.send(m.Ping(nonce=1), 1)  # goes nowhere: the pidfd tells of the death


def test_last_words_of_a_peer_are_heard_although_it_has_left(supervisor_end, worker_end):
    worker_end.send(m.Pong(nonce=1), 1)
    time.sleep(0.1)  # ZeroMQ's thread writes it; LINGER is 0
    worker_end.close()
    supervisor_end.send(m.Ping(nonce=1), 1)
    assert supervisor_end.receive(1)[1] == m.Pong(nonce=1)


def test_endpoint_is_gone_once_its_peer_has_come(supervisor_end, worker_end, endpoint):
    assert not os.path.exists(endpoint.removeprefix("ipc://"))


def test_supervisor_does_without_libzmq():
    code = "import sys, wan_compat.supervisor.client; sys.exit('zmq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_second_peer_is_not_heard(supervisor_end, worker_end, endpoint):
    worker_end.send(m.Pong(nonce=1), 1)
    assert supervisor_end.receive(5)[1] == m.Pong(nonce=1)
    context = zmq.Context()
    try:
        intruder = context.socket(zmq.PAIR)
        intruder.setsockopt(zmq.LINGER, 0)
        intruder.setsockopt(zmq.SNDTIMEO, 300)
        intruder.setsockopt(zmq.IMMEDIATE, 1)
        intruder.connect(endpoint)
        try:
            intruder.send(codec.from_worker_codec().encode(m.Pong(nonce=666), 2))
        except zmq.Again:
            pass
        worker_end.send(m.Pong(nonce=2), 2)
        assert supervisor_end.receive(5)[1] == m.Pong(nonce=2)
        with pytest.raises(DeadlineExceeded):
            supervisor_end.receive(0.3)
    finally:
        context.destroy(0)


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5555", "inproc://x", "ipc://" + "x" * 200])
def test_only_short_local_endpoints_are_accepted(endpoint):
    with pytest.raises(InvalidRequest):
        Channel(endpoint, bind=True, outgoing=codec.to_worker_codec(), incoming=codec.from_worker_codec())
