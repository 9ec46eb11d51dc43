"""What a PAIR peer of ZeroMQ says is understood; anything else is a violation, and costs one frame of memory at most."""

import struct

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_compat.protocol.errors import ProtocolViolation
from wan_compat.protocol.zmtp import GREETING, READY, PairReader, pack_frame

LIMIT = 1000


def established():
    reader = PairReader(LIMIT)
    assert reader.feed(GREETING) == READY
    assert reader.feed(READY) == b""
    assert reader.established
    return reader


def command(body, flags=4):
    return bytes([flags, len(body)]) + body


def ready(*properties):
    return command(
        b"\x05READY"
        + b"".join(bytes([len(name)]) + name + struct.pack(">I", len(value)) + value for name, value in properties)
    )


@pytest.mark.parametrize("size", [0, 1, 255, 256, LIMIT])
def test_a_frame_of_any_allowed_size_survives(size):
    reader = established()
    reader.feed(pack_frame(b"a" * size) * 2)
    assert [reader.next_message() for _ in range(3)] == [b"a" * size, b"a" * size, None]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_messages_do_not_depend_on_how_they_were_cut(messages, data):
    stream = GREETING + READY + b"".join(map(pack_frame, messages))
    reader = PairReader(LIMIT)
    heard, answers, position = [], b"", 0
    while position < len(stream):
        step = data.draw(st.integers(1, 400))
        answers += reader.feed(stream[position : position + step])
        while (message := reader.next_message()) is not None:
            heard.append(message)
        position += step
    assert heard == messages
    assert answers == READY


def test_what_libzmq_says_is_understood(tmp_path):
    import socket

    with socket.socket(socket.AF_UNIX) as listener, zmq.Context() as context:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        peer = context.socket(zmq.PAIR)
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(f"ipc://{tmp_path}/s")
        connection, _ = listener.accept()
        with connection:
            reader = PairReader(1 << 20)
            connection.sendall(GREETING)
            peer.send(b"short")
            peer.send(b"long" * 1000)
            heard = []
            while len(heard) < 2:
                connection.sendall(reader.feed(connection.recv(7)))
                while (message := reader.next_message()) is not None:
                    heard.append(message)
            assert heard == [b"short", b"long" * 1000]
            connection.sendall(pack_frame(b"answer") + pack_frame(b"a" * 300))
            assert [peer.recv(), peer.recv()] == [b"answer", b"a" * 300]
        peer.close()


HOSTILE_TRAFFIC = {
    "first of several parts": b"\x01\x01x",
    "long first part": b"\x03" + struct.pack(">Q", 5),
    "ping": command(b"\x04PING\x00\x00"),
    "long command": b"\x06" + struct.pack(">Q", 1 << 40),
    "subscribe": command(b"\x09SUBSCRIBEx"),
    "error": command(b"\x05ERROR\x00"),
    "command with more": command(b"", flags=5),
    "reserved flag": b"\x08\x00",
    "all flags": b"\xff\xff",
    "one byte too many": b"\x02" + struct.pack(">Q", LIMIT + 1),
    "claimed 2**64 - 1": b"\x02" + b"\xff" * 8,
}


@pytest.mark.parametrize("data", HOSTILE_TRAFFIC.values(), ids=HOSTILE_TRAFFIC)
def test_what_a_pair_peer_does_not_say_is_a_violation_at_its_header(data):
    reader = established()
    reader.feed(data)
    with pytest.raises(ProtocolViolation):
        reader.next_message()


HOSTILE_HANDSHAKE = {
    "ZMTP 1": b"\x01\x00",
    "HTTP": b"GET / HTTP/1.1\r\n",
    "all ones": b"\xff" * 64,
    "signature's end": b"\xff" + bytes(9),
    "ZMTP 2": GREETING[:10] + b"\x01",
    "version 2": GREETING[:10] + b"\x02" + GREETING[11:],
    "version 4": GREETING[:10] + b"\x04" + GREETING[11:],
    "CURVE": GREETING.replace(b"NULL\0", b"CURVE"),
    "message before READY": GREETING + b"\x00\x01x",
    "part before READY": GREETING + b"\x01\x01x",
    "other command": GREETING + command(b"\x05HELLO"),
    "READY too long": GREETING + b"\x06" + struct.pack(">Q", LIMIT + 1),
    "no socket type": GREETING + ready(),
    "DEALER": GREETING + ready((b"Socket-Type", b"DEALER")),
    "two socket types": GREETING + ready((b"Socket-Type", b"PAIR"), (b"socket-type", b"PAIR")),
    "many properties": GREETING + ready((b"Socket-Type", b"PAIR"), *[(b"X", b"")] * 20),
    "truncated property": GREETING + command(b"\x05READY\x0bSocket-Type\x00\x00\x00\x05PAIR"),
    "truncated name": GREETING + command(b"\x05READY\xff"),
    "second READY": GREETING + READY + READY,
}


@pytest.mark.parametrize("data", HOSTILE_HANDSHAKE.values(), ids=HOSTILE_HANDSHAKE)
def test_what_is_no_pair_socket_is_a_violation(data):
    if data[:11] == GREETING[:10] + b"\x01":
        data = data.ljust(64, b"\0")
    reader = PairReader(LIMIT)
    with pytest.raises(ProtocolViolation):
        reader.feed(data)
        reader.next_message()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=100), max_size=10), st.booleans())
def test_random_bytes_raise_nothing_but_violations(pieces, greeted):
    reader = established() if greeted else PairReader(LIMIT)
    try:
        for piece in pieces:
            reader.feed(piece)
            while reader.next_message() is not None:
                pass
    except ProtocolViolation:
        return
    assert len(reader._buffer) <= LIMIT + 109
