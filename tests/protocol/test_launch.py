"""The link between supervisor and zygote carries typed messages and descriptors, and loses none."""

import os
import socket

import msgpack
import pytest

from wan_compat.protocol import launch
from wan_compat.protocol.errors import ProtocolViolation


@pytest.fixture
def link():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


SPAWN = launch.SpawnWorker(worker="w1", endpoint="ipc:///ctl/c", spec={"layers": ("view",)}, seed=b"s" * 32)


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_travel_with_a_message(link):
    ours, theirs = link
    reader, writer = os.pipe()
    launch.send_packet(ours, SPAWN, (writer,))
    os.close(writer)
    message, received = launch.receive_packet(theirs, "to")
    assert message == SPAWN
    os.write(received[0], b"x")
    assert os.read(reader, 2) == b"x"
    assert not os.get_inheritable(received[0])
    os.close(received[0])
    os.close(reader)


def test_end_of_file_is_none(link):
    ours, theirs = link
    ours.close()
    assert launch.receive_packet(theirs, "to") is None


@pytest.mark.parametrize("data", [b"\xc1", msgpack.packb([]), msgpack.packb({"type": "other"}), msgpack.packb(1)])
def test_malformed_packet_is_a_violation_and_leaks_no_descriptor(link, data):
    ours, theirs = link
    before = open_descriptors()
    socket.send_fds(ours, [data], [0, 1, 2])
    with pytest.raises(ProtocolViolation):
        launch.receive_packet(theirs, "to")
    assert open_descriptors() == before


def test_more_descriptors_than_allowed_is_a_violation_and_leaks_none(link):
    ours, theirs = link
    before = open_descriptors()
    socket.send_fds(ours, [msgpack.packb(SPAWN.model_dump())], [0] * (launch.MAX_DESCRIPTORS + 5))
    with pytest.raises(ProtocolViolation):
        launch.receive_packet(theirs, "to")
    assert open_descriptors() == before


def test_a_model_with_too_many_files_is_refused_before_it_is_sent(link):
    spec = {"binds": tuple({"source": "/x" * 100} for _ in range(2000))}
    with pytest.raises(ProtocolViolation, match="exceeds"):
        launch.send_packet(link[0], SPAWN.model_copy(update={"spec": spec}))
