"""A zygote whose workers flood their supervisor on purpose: real processes, really confined, without torch.

    flood_zygote.py FLOOD --control-fd N --parent-pid P [--light]

Up to the moment of the flood they are the well-behaved workers of misbehaving_zygote.py. Floods that start after `seal`
are what hostile code in a worker can do: it finds the ZeroMQ connection among its own descriptors and writes to it
past libzmq. Floods before Hello stand for a peer that never was a ZeroMQ one. Each stops by itself after FLOOD_BYTES
or FLOOD_S, so that a supervisor that swallows everything fails a test and not the machine.
"""

import importlib.util
import os
import select
import socket
import struct
import threading
import time

FLOOD_BYTES = 512 << 20
FLOOD_S = 4.0

_spec = importlib.util.spec_from_file_location(
    "misbehaving_zygote", os.path.join(os.path.dirname(os.path.abspath(__file__)), "misbehaving_zygote.py")
)
misbehaving = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(misbehaving)

m = misbehaving.m
FLOOD = misbehaving.BEHAVIOUR

# ZMTP 3.1, https://rfc.zeromq.org/spec/23/: one byte of flags, then the length in one byte or, with LONG, in eight.
MORE, LONG, COMMAND = 1, 2, 4
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16) + b"\x00" + bytes(31)
READY = b"\x04\x19\x05READY\x0bSocket-Type" + struct.pack(">I", 4) + b"PAIR"


def frame(flags, body, length=None):
    length = len(body) if length is None else length
    if length > 255:
        return struct.pack(">BQ", flags | LONG, length) + body
    return bytes([flags, length]) + body


class FloodingWorker(misbehaving.FakeWorker):
    def at(self, moment, job=0):
        if FLOOD.startswith(f"{moment}:"):
            getattr(self, FLOOD.split(":")[1].replace("-", "_"))(job)

    def connection(self):
        """Find the stream socket that leads to the supervisor, as hostile code would: by trying all descriptors."""
        for number in range(3, 256):
            try:
                found = socket.socket(fileno=os.dup(number))
            except OSError:
                continue
            try:
                if found.type == socket.SOCK_STREAM and found.getpeername():
                    return found
            except OSError:
                pass
            found.close()
        raise SystemExit("no connection found")

    def pour(self, connection, data, wait_s=FLOOD_S):
        """Write `data` again and again until the other end is gone, or the flood's own bounds are reached."""
        written, deadline = 0, time.monotonic() + wait_s
        view = memoryview(data)
        position = 0
        while written < FLOOD_BYTES and time.monotonic() < deadline:
            try:
                sent = connection.send(view[position:], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                select.select([], [connection], [], 0.1)
                continue
            except OSError as error:
                print(f"flood ended by {error} after {written} bytes", flush=True)
                break
            written += sent
            position = (position + sent) % len(view)
        print(f"flooded {written} bytes", flush=True)
        return written

    def pour_and_hang(self, connection, data):
        self.pour(connection, data)
        self.hang(0)

    # -- over the established connection, past libzmq

    def endless_parts(self, job):
        self.pour_and_hang(self.connection(), frame(MORE, bytes(200_000)))

    def empty_parts(self, job):
        self.pour_and_hang(self.connection(), frame(MORE, b"") * 4096)

    def short_parts(self, job):
        self.pour_and_hang(self.connection(), frame(MORE, b"\x93\x01\x01" * 50) * 1000)

    def oversized(self, job):
        self.pour_and_hang(self.connection(), frame(0, bytes(1 << 20), length=1 << 40))

    def barely_oversized(self, job):
        self.pour_and_hang(self.connection(), frame(0, bytes((256 << 10) + 1)))

    def pings(self, job):
        self.pour_and_hang(self.connection(), frame(COMMAND, b"\x04PING\x00\x00" + b"context-of-sixte") * 1000)

    def long_commands(self, job):
        self.pour_and_hang(self.connection(), frame(COMMAND, b"\x08WHATEVER" + bytes(200_000)))

    def subscriptions(self, job):
        self.pour_and_hang(self.connection(), frame(COMMAND, b"\x09SUBSCRIBE" + bytes(100)) * 1000)

    def dribble(self, job):
        connection = self.connection()
        connection.send(frame(0, b"", length=250 << 10))
        deadline = time.monotonic() + FLOOD_S
        while time.monotonic() < deadline:
            try:
                connection.send(b"\x00", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                select.select([], [connection], [], 0.1)
            except OSError:
                break
        self.hang(0)

    def empty_messages(self, job):
        self.pour_and_hang(self.connection(), frame(0, b"") * 4096)

    def largest_messages(self, job):
        self.pour_and_hang(self.connection(), frame(0, bytes(256 << 10)))

    def never_reads(self, job):
        # Pings pile up at the supervisor while this one reads nothing and keeps talking.
        self.hang(0)

    # -- valid messages

    def progress(self, job):
        step = 0
        deadline = time.monotonic() + FLOOD_S
        codec = misbehaving.from_worker_codec()
        total = 2**62
        connection = self.connection()
        while time.monotonic() < deadline:
            batch = []
            for _ in range(500):
                step, self.seq = step + 1, self.seq + 1
                batch.append(
                    frame(0, codec.encode(m.Progress(job=job, phase="denoise", step=step, total=total), self.seq))
                )
            connection.setblocking(True)
            try:
                connection.sendall(b"".join(batch))
            except OSError:
                break
        self.hang(0)

    def phases(self, job):
        # Each change of phase is an event that nobody may drop.
        deadline = time.monotonic() + FLOOD_S
        while time.monotonic() < deadline:
            for phase in ("text_encode", "denoise"):
                self.send(m.Progress(job=job, phase=phase, step=1, total=1))
        self.hang(0)

    def honest_progress(self, job):
        """As fast as it can, and all of it permitted; the job then succeeds."""
        for step in range(3000):
            self.send(m.Progress(job=job, phase="text_encode", step=step + 1, total=3000))

    # -- doorbell and log

    def ring_doorbell(self, job):
        self.pour_and_hang(self.doorbell, struct.pack("<II", job, 0))

    def descriptors(self, job):
        deadline = time.monotonic() + FLOOD_S
        while time.monotonic() < deadline:
            try:
                socket.send_fds(self.doorbell, [struct.pack("<II", job + 1, 0)], [0, 1, 2] * 80)
            except OSError:
                break
        self.hang(0)

    def log(self, job):
        line = b"\x1b[2J" + b"x" * 60_000 + b"\n"
        deadline = time.monotonic() + FLOOD_S
        os.set_blocking(1, False)
        while time.monotonic() < deadline:
            try:
                os.write(1, line)
            except BlockingIOError:
                select.select([], [1], [], 0.1)

    def log_without_newline(self, job):
        deadline = time.monotonic() + FLOOD_S
        os.set_blocking(1, False)
        while time.monotonic() < deadline:
            try:
                os.write(1, b"y" * 60_000)
            except BlockingIOError:
                select.select([], [1], [], 0.1)

    def everything(self, job):
        connection = self.connection()
        for target in (self.log_without_newline, self.descriptors):
            threading.Thread(target=target, args=(job,), daemon=True).start()
        self.pour_and_hang(connection, frame(MORE, bytes(100)) * 1000)


def raw_peer(order, ring, doorbell, report):
    """A worker that never was a ZeroMQ peer."""
    path = order.endpoint.removeprefix("ipc://")
    worker = FloodingWorker.__new__(FloodingWorker)

    def connect():
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.connect(path)
        return peer

    kind = FLOOD.removeprefix("raw:")
    if kind == "half-open":
        peer = connect()
        peer.send(GREETING[:11])
    elif kind == "many-half-open":
        peers = []
        try:
            while len(peers) < 200:
                peers.append(connect())
                peers[-1].send(GREETING)
        except OSError as error:
            print(error, flush=True)
    elif kind == "connect-storm":
        deadline = time.monotonic() + FLOOD_S
        while time.monotonic() < deadline:
            try:
                connect().close()
            except OSError:
                time.sleep(0.001)
    elif kind == "huge-greeting":
        worker.pour(connect(), b"\xff" * 65536)
    elif kind == "endless-greeting":
        worker.pour(connect(), GREETING)
    elif kind == "huge-ready":
        peer = connect()
        peer.send(GREETING)
        worker.pour(peer, struct.pack(">BQ", COMMAND | LONG, 1 << 40) + bytes(65536))
    elif kind == "many-properties":
        peer = connect()
        peer.send(GREETING)
        body = b"\x05READY" + (b"\x01X" + struct.pack(">I", 0)) * 40_000
        worker.pour(peer, frame(COMMAND, body))
    elif kind == "second-ready":
        peer = connect()
        peer.send(GREETING)
        worker.pour(peer, READY)
    time.sleep(60)


def be_flooding(order, confinement, ring, doorbell, light, report):
    if FLOOD.startswith("raw:"):
        raw_peer(order, ring, doorbell, report)
    else:
        FloodingWorker(order, ring, doorbell, report).run()


if __name__ == "__main__":
    misbehaving.zygote._be_worker = be_flooding
    misbehaving.zygote.libraries.import_libraries = lambda: 0.0
    misbehaving.zygote.main()
