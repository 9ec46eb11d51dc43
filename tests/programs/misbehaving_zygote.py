"""A zygote whose workers misbehave on purpose: real processes, really confined, without torch.

    misbehaving_zygote.py BEHAVIOUR --control-fd N --parent-pid P [--light]

They speak the protocol well until the moment that BEHAVIOUR names. "well" never misbehaves: it makes grey frames.
"as-asked" takes the behaviour of each job from its prompt.
"""

import ctypes
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time

import wan_compat.workers.zygote as zygote
from wan_compat.protocol import messages as m
from wan_compat.protocol.channel import Channel
from wan_compat.protocol.codec import from_worker_codec, to_worker_codec
from wan_compat.protocol.ring import RingLayout, pack_doorbell, unpack_doorbell
from wan_compat.sandbox import seccomp, selftest

BEHAVIOUR = sys.argv.pop(1)
AS_ASKED = BEHAVIOUR == "as-asked"


class FakeWorker:
    def __init__(self, order, ring, doorbell, report):
        probes = selftest.run_probes((ring, doorbell))
        self.ring = mmap.mmap(ring, 0)
        self.doorbell = socket.socket(fileno=doorbell)
        self.channel = Channel(order.endpoint, bind=False, outgoing=from_worker_codec(), incoming=to_worker_codec())
        self.seq = 0
        self.report, self.probes = report, tuple(self.probe(p) for p in probes)

    @staticmethod
    def probe(result):
        return m.Probe(name=result.name, denied=result.denied, detail=result.detail[:200])

    def send(self, message):
        self.seq += 1
        self.channel.send(message, self.seq)

    def receive(self, kind):
        while True:
            _, message = self.channel.receive(60)
            if isinstance(message, m.Ping):
                self.send(m.Pong(nonce=message.nonce))
            elif isinstance(message, m.Shutdown):
                os._exit(0)
            elif isinstance(message, kind):
                return message

    def run(self):
        self.at("start")
        if BEHAVIOUR == "open-door":
            self.probes = tuple(p.model_copy(update={"denied": p.name != "read_host_files"}) for p in self.probes)
        if BEHAVIOUR == "untold-door":
            self.probes = tuple(p for p in self.probes if p.name != "read_host_files")
        self.send(
            m.Hello(
                protocol_version=m.PROTOCOL_VERSION,
                layers=tuple(name for name in self.report.layers if name != BEHAVIOUR.removeprefix("no-layer:")),
                probes=self.probes,
                versions={"torch": self.HOSTILE} if BEHAVIOUR == "hostile-reason" else {},
                entry_s=0.0,
            )
            if BEHAVIOUR != "early-ready"
            else m.Ready(probes=())
        )
        self.receive(m.Welcome)
        if BEHAVIOUR != "unsealed":
            seccomp.seal()
        self.send(m.Ready(probes=tuple(self.probe(p) for p in selftest.run_sealed_probes())))
        self.receive(m.LoadModel)
        self.at("load")
        self.send(m.Progress(job=0, phase="load", step=1, total=1))
        self.send(
            m.ModelLoaded(
                pipeline_class="WanPipeline",
                parameters={},
                streaming=BEHAVIOUR != "hostile-reason",
                streaming_reason=self.HOSTILE if BEHAVIOUR == "hostile-reason" else "",
                load_s=0.0,
            )
        )
        while True:
            self.generate(self.receive(m.Generate))

    def generate(self, order):
        global BEHAVIOUR
        if AS_ASKED:
            # "exit@7": only for the order whose seed is 7.
            BEHAVIOUR, _, seed = order.params.prompt.partition("@")
            BEHAVIOUR = "well" if seed and int(seed) != order.params.seed else BEHAVIOUR
        job, frames = order.job, order.params.frames
        self.frames = frames
        layout = RingLayout(frames)
        self.at("denoise", job)
        if BEHAVIOUR.startswith("encoded:"):
            self.send(m.Progress(job=job, phase="text_encode", step=1, total=1))
        self.at("encoded", job)
        for step in range(order.params.num_inference_steps):
            self.send(m.Progress(job=job, phase="denoise", step=step + 1, total=order.params.num_inference_steps))
            if BEHAVIOUR == "slow":
                select.select([self.channel.fileno()], [], [], 0.05)
                item = self.channel.receive_nowait()
                if item and isinstance(item[1], m.Cancel):
                    self.send(m.Cancelled(job=job))
                    return
                if item and isinstance(item[1], m.Ping):
                    self.send(m.Pong(nonce=item[1].nonce))
        consumed, total = 0, frames.num_frames * order.params.videos_at_once
        for index in range(total):
            while index - consumed >= layout.slots:
                _, consumed = unpack_doorbell(self.doorbell.recv(64))
            start = layout.offset(index)
            self.ring[start : start + frames.frame_bytes] = bytes([index % 256]) * frames.frame_bytes
            self.doorbell.send(pack_doorbell(job, index))
            if index == 1:
                self.at("frame", job)
            if index == frames.num_frames:
                self.at("second", job)
        while consumed < total:
            _, consumed = unpack_doorbell(self.doorbell.recv(64))
        if BEHAVIOUR == "too-many-frames":
            self.doorbell.send(pack_doorbell(job, total))
        self.send(m.Generated(job=job, text_encode_s=0.0, denoise_s=0.0, decode_s=0.0))
        self.at("idle", job)

    def at(self, moment, job=0):
        if BEHAVIOUR.startswith(f"{moment}:"):
            getattr(self, BEHAVIOUR.split(":")[1].replace("-", "_"))(job)

    # -- misdeeds

    HOSTILE = "\x1b]0;owned\x07\x1b[2J\r[red]fine[/red] \u202egnp.exe\u202c\u200b\nwan-compat: all is well\x00\x9b31m"

    def hostile_words(self, job):
        self.send(m.Failed(job=job, code="model_corrupt", message=self.HOSTILE, fixes=(self.HOSTILE,) * 3))
        self.hang(job)

    def hostile_print(self, job):
        print(self.HOSTILE, flush=True)
        os._exit(4)

    def exit(self, job):
        print("I am leaving \x1b[31mnow\x1b[0m", flush=True)
        os._exit(3)

    def exit_when_read(self, job):
        """Leave when the frame that was just published was taken: everything before it stands."""
        while unpack_doorbell(self.doorbell.recv(64))[1] <= self.frames.num_frames:
            pass
        self.exit(job)

    def knock(self, job):
        """Try the sockets whose paths follow in BEHAVIOUR."""
        for path in BEHAVIOUR.split(":")[2:]:
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(path)
                print("it is open", flush=True)
            except OSError as error:
                print(type(error).__name__, flush=True)
        os._exit(3)

    def crash(self, job):
        ctypes.string_at(1)

    def forbidden(self, job):
        ctypes.CDLL(None).ptrace(0, 0, 0, 0)

    def stop(self, job):
        # SIGSTOP does not reach the first process of a pid namespace from inside; hanging is what it can do.
        os.kill(os.getpid(), signal.SIGSTOP)
        self.hang(job)

    def hang(self, job):
        while True:
            time.sleep(60)

    def doze(self, job):
        """Do nothing, and answer: what threads that wait for each other look like from outside."""
        threading.Thread(target=self.answer, daemon=True).start()
        self.hang(job)

    def toil(self, job):
        """Compute without an end, and answer."""
        threading.Thread(target=self.answer, daemon=True).start()
        self.spin(job)

    def answer(self):
        self.receive(m.Welcome)  # never comes again

    def spin(self, job):
        while True:
            pass

    def spin_with_gil(self, job):
        ctypes.PyDLL(None).sleep(600)

    def eat_memory(self, job):
        # A cgroup kills it; RLIMIT_DATA refuses more, which a worker reports.
        hoard = []
        try:
            while True:
                hoard.append(bytearray(os.urandom(1 << 16) * 256))
        except MemoryError:
            del hoard
            self.send(m.Failed(job=job, code="memory_exceeded", message="no more memory"))
            self.hang(job)

    def print_flood(self, job):
        line = b"\x1b[2J" + b"x" * 4000 + b"\n"
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            os.write(1, line)

    def message_flood(self, job):
        while True:
            self.send(m.Progress(job=job, phase="denoise", step=1, total=1))

    def dawdle(self, job):
        """Call every step the last one, so that it seems to be about to decode all the time."""
        for step in range(1, 10_000):
            self.send(m.Progress(job=job, phase="denoise", step=step, total=step))
            select.select([self.channel.fileno()], [], [], 0.02)
            item = self.channel.receive_nowait()
            if item and isinstance(item[1], m.Ping):
                self.send(m.Pong(nonce=item[1].nonce))

    def bad_sequence(self, job):
        self.seq += 5
        self.send(m.Progress(job=job, phase="decode", step=1, total=1))

    def late_bad_sequence(self, job):
        time.sleep(0.5)  # by then its job is over
        self.bad_sequence(job)

    def garbage(self, job):
        self.channel._end.socket.send(b"\xc1" * 100)

    def oversized(self, job):
        self.channel._end.socket.send(b"x" * (1 << 20))
        self.hang(job)

    def multipart(self, job):
        self.channel._end.socket.send_multipart([b"x"] * 100)

    def claims_cancel(self, job):
        self.send(m.Failed(job=job, code="job_cancelled", message="the user wanted it"))
        self.hang(job)
        self.hang(job)  # going on would be a violation of its own

    def finish_early(self, job):
        self.send(m.Generated(job=job, text_encode_s=0.0, denoise_s=0.0, decode_s=0.0))
        self.hang(job)

    def skip_frame(self, job):
        self.doorbell.send(pack_doorbell(job, 5))

    def repeat_frame(self, job):
        self.doorbell.send(pack_doorbell(job, 1))

    def other_job(self, job):
        self.doorbell.send(pack_doorbell(job + 1, 2))

    def no_credit(self, job):
        for index in range(2, 2 + 8):
            self.doorbell.send(pack_doorbell(job, index))

    def long_doorbell(self, job):
        self.doorbell.send(b"z" * 3000)

    def doorbell_descriptors(self, job):
        socket.send_fds(self.doorbell, [struct.pack("<II", job, 2)], [0, 1, 2])
        self.doorbell.send(b"")

    def resize_ring(self, job):
        for length in (0, 4096, 1 << 40):
            try:
                self.ring.resize(length)
            except (OSError, ValueError, SystemError):
                pass
        self.exit(job)

    def thread_storm(self, job):
        def sleep():
            time.sleep(60)

        while True:
            threading.Thread(target=sleep, daemon=True).start()


def be_misbehaving(order, confinement, ring, doorbell, light, report):
    FakeWorker(order, ring, doorbell, report).run()


if __name__ == "__main__":
    if BEHAVIOUR == "zygote-exit":
        print("no libraries today")
        sys.exit(9)
    zygote._be_worker = be_misbehaving
    zygote.libraries.import_libraries = lambda: 0.0
    zygote.main()
