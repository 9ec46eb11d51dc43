"""Two ends of a control channel: bounded, with deadlines, never hanging."""

import time

import pytest
import zmq

from tests.protocol.test_codec import HELLO_BYTES, SAMPLES_FROM_WORKER
from wan_compat.protocol import codec
from wan_compat.protocol import messages as m
from wan_compat.protocol.channel import QUEUE_MESSAGES, Channel
from wan_compat.protocol.errors import DeadlineExceeded, InvalidRequest, ProtocolViolation


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
    # The worker's end never reads: queues of both sides and the socket's buffer fill, then `send` gives up.
    with pytest.raises(DeadlineExceeded):
        for seq in range(1, 200 * QUEUE_MESSAGES):
            supervisor_end.send(m.Ping(nonce=seq), seq)


def test_message_of_several_parts_is_a_violation(supervisor_end, raw_peer):
    raw_peer.send_multipart([HELLO_BYTES, HELLO_BYTES])
    with pytest.raises(ProtocolViolation):
        supervisor_end.receive(5)


def test_oversized_message_never_reaches_the_codec(supervisor_end, raw_peer):
    raw_peer.send(b"x" * (codec.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(DeadlineExceeded):  # libzmq drops the peer (ZMQ_MAXMSGSIZE)
        supervisor_end.receive(0.5)


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
