"""What is fuzzed: every parser of the supervisor that reads a worker's or a model author's bytes, with its promise.

A target takes bytes and either accepts them or raises one of its typed errors. Anything else that it raises, an
`AssertionError` about its promise included, is a finding; so is an input that takes too long or too much memory.
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import io
import json
import os
import resource
import socket
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.assets.weight_files import gguf_file
from wan_compat.policies.batch.expansion import expand
from wan_compat.policies.batch.fields import settle_names
from wan_compat.policies.batch.items import Line
from wan_compat.policies.batch.names import objection
from wan_compat.policies.batch.progress import Progress, left_to_do
from wan_compat.policies.batch.records import Started, encode
from wan_compat.policies.download import plan_download, read_listing
from wan_compat.policies.facts import FileFact, WeightFile
from wan_compat.policies.manifest import Unusable, read_bundle, read_checksums, read_manifest, read_statement
from wan_compat.policies.scan import pickle_opcodes
from wan_compat.policies.scan.rules import rule_finding
from wan_compat.protocol import codec, control, launch, states
from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import (
    BatchInvalid,
    CorruptFrame,
    FetchFailed,
    JournalUnusable,
    ModelCorrupt,
    PickleRefused,
    ProtocolViolation,
    WanCompatError,
)
from wan_compat.protocol.plan import DecodeSpec
from wan_compat.protocol.ring import RING_BYTES, pack_doorbell
from wan_compat.protocol.values import ComponentSpec, FrameSpec, GenerationParams, PipelineSpec
from wan_compat.protocol.zmtp import GREETING, READY, PairReader, pack_frame
from wan_compat.supervisor.batch import journal
from wan_compat.supervisor.batch.reading import FORMATS, parse_batch
from wan_compat.supervisor.frame_ring import FrameRing
from wan_compat.supervisor.inspection import parse_json, read_gguf_header, read_safetensors_header
from wan_compat.supervisor.request_paths import relative_path_in
from wan_compat.supervisor.scanning.contents import inspect_contents
from wan_compat.supervisor.scanning.sources import BytesContents

SIGNED_MODEL = Path(__file__).parents[1] / "assets" / "signed_model"
MAX_CPU_S = 1.0
MAX_GROWTH_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Target:
    run: Callable[[bytes], None]
    allowed: tuple[type[BaseException], ...]
    seeds: Callable[[], Iterator[bytes]]
    max_len: int = 4096


def check(target: Target, data: bytes) -> None:
    """Run one input. Raises whatever is a finding."""
    began, resident = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        target.run(data)
    except target.allowed as error:
        assert isinstance(error, WanCompatError)
        error.message.encode()  # goes to terminals and files
        json.dumps(error.to_json()).encode()
    took_s = time.process_time() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) << 10
    assert took_s < MAX_CPU_S, f"slow: {took_s:.2f} s for {len(data)} bytes"
    assert grown < MAX_GROWTH_BYTES, f"hungry: {grown >> 20} MiB for {len(data)} bytes"


# ---- control socket -------------------------------------------------------------------------------------------------

TO_SUPERVISOR = control.to_supervisor_codec()


def run_control(data: bytes) -> None:
    number, request = TO_SUPERVISOR.decode(data)
    assert TO_SUPERVISOR.decode(TO_SUPERVISOR.encode(request, number)) == (number, request)
    wanted = getattr(request, "generation", None) or getattr(request, "conversion", None)
    if wanted is not None and relative_path_in(wanted) is None:
        assert wanted.model.startswith("/") and (wanted.output is None or wanted.output.startswith("/"))


def control_seeds() -> Iterator[bytes]:
    from tests.protocol.test_control import REQUESTS

    for number, request in enumerate(REQUESTS, 1):
        yield TO_SUPERVISOR.encode(request, number)


# ---- codec ----------------------------------------------------------------------------------------------------------

FROM_WORKER = codec.from_worker_codec()
TO_WORKER = codec.to_worker_codec()

_PROBE = m.Probe(name="inet_socket", denied=True, detail="EPERM")
FROM_WORKER_SAMPLES = (  # states_seeds names them by their place: new ones go to the end
    m.Hello(protocol_version=1, layers=("view", "seccomp"), probes=(_PROBE,), versions={"torch": "2"}, entry_s=0.01),
    m.Ready(probes=(_PROBE,)),
    m.Progress(job=0, phase="load", step=1, total=5),
    m.Progress(job=1, phase="denoise", step=1, total=5),
    m.Progress(job=1, phase="decode", step=5, total=5),
    m.ModelLoaded(
        pipeline_class="WanPipeline", parameters={"vae": 5}, streaming=True, streaming_reason="equal", load_s=0.2
    ),
    m.Generated(job=1, text_encode_s=0.1, denoise_s=1.0, decode_s=0.5, peak_vram_bytes=1 << 40),
    m.Cancelled(job=1),
    m.Failed(job=1, code="unusable_frames", message="NaN", fixes=("try another seed",)),
    m.Failed(job=0, code="model_corrupt", message="läuft nicht"),
    m.Pong(nonce=7),
    m.PartLoaded(component="vae", parameters=5, tensor_bytes=20, load_s=0.1),
    m.Progress(job=1, phase="denoise", step=2, total=5, picture=m.Picture(width=2, height=1, pixels="AAECAwQF")),
)
_PIPELINE = PipelineSpec(
    pipeline_class="WanPipeline",
    components=(ComponentSpec(name="vae", library="diffusers", class_name="AutoencoderKLWan", subfolder="vae"),),
    threads=2,
)
_PARAMS = GenerationParams(
    prompt="a fox",
    seed=1,
    num_inference_steps=4,
    guidance_scale=5.0,
    frames=FrameSpec(height=16, width=16, num_frames=9),
)
TO_WORKER_SAMPLES = (
    m.Welcome(),
    m.LoadModel(pipeline=_PIPELINE),
    m.Generate(job=1, params=_PARAMS),
    m.Cancel(job=1),
    m.Ping(nonce=7),
    m.Shutdown(),
    m.DecodeAgain(job=2, frames=_PARAMS.frames, decoding=DecodeSpec(streaming="never")),
    m.LoadPart(pipeline=_PIPELINE, component="vae"),
)


def run_codec(data: bytes) -> None:
    seq, message = FROM_WORKER.decode(data)
    assert FROM_WORKER.decode(FROM_WORKER.encode(message, seq)) == (seq, message)


def codec_seeds() -> Iterator[bytes]:
    for sample in FROM_WORKER_SAMPLES:
        yield FROM_WORKER.encode(sample, 3)


# ---- state machine --------------------------------------------------------------------------------------------------


def run_states(data: bytes) -> None:
    """Each pair of bytes is a step: what to say, and how to twist it."""
    talk = states.Conversation()
    seq = 0
    for what, twist in zip(data[::2], data[1::2], strict=False):
        before = talk.state
        if what & 0x80:
            message = TO_WORKER_SAMPLES[what % len(TO_WORKER_SAMPLES)]
            if isinstance(message, m.Ping):
                message = m.Ping(nonce=twist)
            if type(message) not in states.SEND[before]:
                continue  # ours to get right, and tested elsewhere
            talk.sending(message)
            assert talk.state == states.SEND[before][type(message)]
            continue
        message = FROM_WORKER_SAMPLES[what % len(FROM_WORKER_SAMPLES)]
        if isinstance(message, m.Pong):
            message = m.Pong(nonce=twist)
        elif isinstance(message, m.Progress):
            message = message.model_copy(update={"step": twist % 16, "total": twist // 16})
        elif twist > 250:
            seq += 1
        talk.received(seq + 1, message)
        seq += 1
        assert type(message) in states.RECEIVE[before]
        assert talk.state == states.RECEIVE[before][type(message)]


def states_seeds() -> Iterator[bytes]:
    def said(kind: int, twist: int = 0) -> bytes:
        return bytes([kind, twist])

    def told(kind: int, twist: int = 0) -> bytes:
        return bytes([next(byte for byte in range(0x80, 0x100) if byte % len(TO_WORKER_SAMPLES) == kind), twist])

    begin = said(0) + told(0) + said(1) + told(1) + said(2, 0x51) + said(5)
    yield begin + told(4, 9) + said(10, 9) + told(2) + said(3, 0x51) + said(3, 0x52) + said(4, 0x51) + said(6)
    yield begin + told(2) + told(3) + said(7) + told(2) + said(8) + told(5)
    yield said(0) + told(0) + said(1) + told(1) + said(9) + told(1)


# ---- ring -----------------------------------------------------------------------------------------------------------


def run_ring(data: bytes) -> None:
    """Bytes are steps of worker and supervisor against one ring: packets are the worker's, the rest is ours."""
    ring = FrameRing()
    theirs = socket.socket(fileno=os.dup(ring.worker_descriptors[1]))
    theirs.setblocking(False)
    stream = io.BytesIO(data)
    job = 0
    try:
        while step := stream.read(1):
            match step[0] % 8:
                case 0:
                    job += 1
                    side = 1 << (step[0] >> 5)
                    ring.begin(job, FrameSpec(height=side, width=4096, num_frames=1 + (step[0] >> 3)))
                case 1 | 2:
                    _send(theirs, stream.read(stream.read(1)[0] % 12 if step[0] & 8 else 8))
                case 3 | 4:
                    _send(theirs, pack_doorbell(job, ring.published + (step[0] >> 6)))
                case 5:
                    ready = ring.collect()
                    assert 0 <= ready == ring.published - ring.consumed <= 4
                case 6:
                    if ring._layout is not None and ring.published > ring.consumed:
                        with ring.front() as view:
                            assert view.readonly and len(view) == ring._layout.frame.frame_bytes
                        assert ring._layout.offset(ring.consumed) + ring._layout.frame.frame_bytes <= RING_BYTES
                        ring.release()
                case 7:
                    if step[0] & 8:
                        ring.end()
                    elif ring.complete:
                        assert ring.consumed == ring._layout.frame.num_frames  # type: ignore[union-attr]
            assert 0 <= ring.consumed <= ring.published
    except IndexError:
        pass  # the input ended in the middle of a step
    finally:
        theirs.close()
        ring.close()


def _send(sock: socket.socket, packet: bytes) -> None:
    try:
        sock.send(packet)
    except (BlockingIOError, BrokenPipeError):
        pass


def ring_seeds() -> Iterator[bytes]:
    yield bytes([0x20, 3, 5, 6, 7])  # one short frame of five; then the job's end is looked at
    yield bytes([0x20, 3, 5, 3, 5, 3, 5, 3, 5, 6, 6, 6, 6, 3, 5, 6, 7, 15])
    yield bytes([0x28, 1]) + pack_doorbell(1, 0) + bytes([5, 6, 9, 0, 5])  # and hangs up by an empty packet


# ---- ZMTP -----------------------------------------------------------------------------------------------------------


def run_zmtp(data: bytes) -> None:
    """The first byte says how the rest is cut."""
    reader = PairReader(1000)
    cut = 1 + (data[0] if data else 0)
    for position in range(1, len(data), cut):
        answer = reader.feed(data[position : position + cut])
        assert answer in (b"", READY)
        while (message := reader.next_message()) is not None:
            assert len(message) <= 1000 and reader.established
        assert len(reader._buffer) <= 1009 + cut


def zmtp_seeds() -> Iterator[bytes]:
    for cut in (0, 6, 255):
        yield bytes([cut]) + GREETING + READY + pack_frame(b"short") + pack_frame(b"long" * 100) + pack_frame(b"")


# ---- JSON, safetensors and GGUF ----------------------------------------------------------------------------------


def run_json(data: bytes) -> None:
    value = parse_json(data, "config.json")
    assert json.loads(data) is not None
    json.dumps(value, ensure_ascii=False).encode()  # facts go into reports


def json_seeds() -> Iterator[bytes]:
    index = {"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"], "boundary_ratio": None}
    config = {"z_dim": 16, "latents_mean": [-0.75, 1e-3], "lambda_min_clipped": float("-inf"), "a": {"b": [True, "é"]}}
    yield json.dumps(index, indent=2).encode()
    yield json.dumps(config).encode()
    yield b'{"fox": "\\ud83e\\udd8a"}'


def run_safetensors(data: bytes) -> None:
    """Accepted by us and by the loader's own reader, a file must say the same to both."""
    ours = _header_of(data, "x.safetensors", read_safetensors_header)
    assert sum(fact.bytes for fact in ours.tensors.values()) + ours.header_bytes + 8 == len(data)
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError:  # the worker's libraries are not installed
        return
    try:
        theirs = dict(deserialize(data))
    except SafetensorError:
        return  # stricter than we are: the worker says so
    assert set(theirs) == set(ours.tensors)
    for name, fact in ours.tensors.items():
        assert tuple(theirs[name]["shape"]) == fact.shape, (name, theirs[name]["shape"], fact)
        assert theirs[name]["dtype"] == fact.dtype
        assert len(theirs[name]["data"]) == fact.bytes


def _header_of(data: bytes, name: str, read: Callable[[FileFact], WeightFile]) -> WeightFile:
    # Made and removed each time: libFuzzer ends the process without any cleaning up.
    descriptor, path = tempfile.mkstemp(prefix="wan-compat-fuzz-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        info = os.stat(path)
        return read(FileFact(name, path, info.st_size, info.st_dev, info.st_ino, info.st_mtime_ns))
    finally:
        os.unlink(path)


def safetensors_seeds() -> Iterator[bytes]:
    for header, size in (
        ({}, 0),
        ({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}, 16),
        (
            {
                "__metadata__": {"format": "pt"},
                "blocks.0.weight": {"dtype": "BF16", "shape": [3, 1, 2], "data_offsets": [4, 16]},
                "scale": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
                "none": {"dtype": "U8", "shape": [0, 5], "data_offsets": [16, 16]},
            },
            16,
        ),
    ):
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        yield struct.pack("<Q", len(raw)) + raw + bytes(size)


def run_gguf(data: bytes) -> None:
    ours = _header_of(data, "x.gguf", read_gguf_header)
    assert ours.header_bytes + sum(fact.bytes for fact in ours.tensors.values()) <= len(data)
    for fact in ours.tensors.values():
        assert len(fact.shape) <= 8 and all(side >= 0 for side in fact.shape)
    json.dumps(dict(ours.metadata), ensure_ascii=False).encode()


def gguf_seeds() -> Iterator[bytes]:
    yield gguf_file([], [])
    pairs = [("general.architecture", 8, "wan"), ("general.alignment", 4, 64), ("x", 6, 0.5), ("y", 7, True)]
    arrays = [
        ("tokens", (8, ["a", "b", "c"])),
        ("scores", (6, [0.5, 1.5])),
        ("comfy.gguf.orig_shape.p", (5, [2, 1, 16])),
    ]
    tensors = [("p", (32,), 0, 128), ("blocks.0.weight", (256, 2), 12, 288), ("none", (0,), 1, 0)]
    yield gguf_file([*pairs, *((key, 9, value) for key, value in arrays)], tensors, alignment=64)
    yield gguf_file(pairs[:1], tensors[:2], version=2)


# ---- the zygote's link ----------------------------------------------------------------------------------------------


def run_launch(data: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(data or b"\0")
        packet = launch.receive_packet(ours, "from")
        assert packet is not None and packet[1] == ()


def launch_seeds() -> Iterator[bytes]:
    import msgpack

    for message in (
        launch.ZygoteReady(import_s=1.0, threads=1, versions={"torch": "2"}),
        launch.WorkerSpawned(worker="w1", pid=5),
        launch.SpawnFailed(worker="w1", code="x", message="y", fixes=("z",), layer="view"),
        launch.WorkerExited(worker="w1", pid=5, status=9),
    ):
        yield msgpack.packb(message.model_dump())


# ---- scan -----------------------------------------------------------------------------------------------------------


def run_pickle(data: bytes) -> None:
    """The walker never raises; what it finds is bounded and told in words that can be shown."""
    reports, end = pickle_opcodes.walk_stream(data)
    assert 0 < len(reports) <= pickle_opcodes.MAX_PICKLES and end <= len(data)
    for item in pickle_opcodes.observations(reports):
        rule_finding(item, path="x.bin").message.encode()
    assert not pickle_opcodes.is_pickle(data) or data
    if not reports[-1].stopped:
        assert reports[-1].problems  # never a silent end


def pickle_seeds() -> Iterator[bytes]:
    import pickle

    for protocol in range(6):
        yield pickle.dumps([{"a": (1, 2.5, None)}, b"bytes", {"set"}, collections.OrderedDict(b=1)], protocol)
    yield b"(S'id'\nios\nsystem\n."
    yield b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x8c\x02id\x85R."


def run_contents(data: bytes) -> None:
    """Zips, compressed files and whatever lies in them, all formats and their readers."""
    for name in ("x.bin", "x.py", "x.json"):
        for item in inspect_contents(BytesContents(data), name).observations:
            rule_finding(item, path=name).message.encode()


def contents_seeds() -> Iterator[bytes]:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02ctorch\nFloatStorage\n.")
            archive.writestr("archive/data/0", bytes(16))
        yield buffer.getvalue()
    yield gzip.compress(b"cos\nsystem\n(S'id'\ntR.")
    yield b"import os\nos.system('id')\n"
    yield b'{"auto_map": {"a": "b.c"}, "chat_template": "{{ x.__class__ }}"}'
    yield b"\x93NUMPY\x01\x00\x36\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n\x80\x02N."


def run_hub(data: bytes) -> None:
    """What a hub lists, and hashes that come with a model. The first byte says which; no list is half used."""
    kind, raw = data[:1], data[1:]
    try:
        if kind == b"s":
            accepted = read_checksums(raw.decode("utf-8", "replace"), "SHA256SUMS")
        elif kind == b"m":
            accepted = read_manifest(parse_json(raw, "manifest")) or {}
        elif kind == b"b":
            accepted = read_statement(parse_json(read_bundle(parse_json(raw, "bundle")).payload, "statement"))
        else:
            listing = read_listing("org/name", parse_json(raw, "listing"))
            plan = plan_download(listing, {"vae": ["diffusers", "AutoencoderKLWan"]})
            assert {file.path for file in plan.files} | {item.path for item in plan.skipped} >= listing.files.keys()
            accepted = {path: file.blob for path, file in listing.files.items()}
    except Unusable:
        return
    for path, digest in accepted.items():
        inside = os.path.normpath(os.path.join("/model", path))
        assert inside.startswith("/model/") and len(digest) in (40, 64) and set(digest) <= set("0123456789abcdef")


def hub_seeds() -> Iterator[bytes]:
    sha1, sha256 = "a" * 40, "b" * 64
    files = [["model_index.json", 10, sha1, None], ["vae/diffusion_pytorch_model.safetensors", 9000, sha1, sha256]]
    yield b"l" + json.dumps({"commit": "c" * 40, "files": [*files, ["../x.py", 1, sha1, None]]}).encode()
    yield b"s" + f"{sha256}  vae/config.json\nSHA256 (a b) = {sha256}\n".encode()
    yield b"m" + json.dumps({"files": {"a": sha256, "b": {"sha256": sha256}}}).encode()
    yield b"m" + json.dumps({"files": [{"path": "a", "sha256": sha256}]}).encode()
    yield b"b" + (SIGNED_MODEL / "model.sig").read_bytes()


def run_batch(data: bytes) -> None:
    """A batch file in each format, down to its items, and a journal. Its first byte says which."""
    form = (*FORMATS, "journal")[data[0] % (len(FORMATS) + 1)] if data else "txt"
    if form == "journal":
        records, length = journal._parse(data[1:], "journal", header=False)
        assert length <= len(data) - 1
        left_to_do([], Progress(records))
        return
    file = parse_batch(data[1:], "batch", form)
    lines = [Line(line.number, settle_names(line)[0]) for line in file.lines]
    items, problems = expand(lines, settle_names(file.defaults)[0] | {"model": "m"})
    assert all(problem.describe("batch").isprintable() for problem in (*file.problems, *problems))
    for item in items if not problems else ():
        assert objection(item.output) is None and "/" not in item.output


def batch_seeds() -> Iterator[bytes]:
    texts = {
        "jsonl": '{"defaults": {"steps": 4, "size": "64x64"}}\n{"prompt": "a", "seeds": [1, 2], "lora": "x:0.5@high"}\n',
        "csv": 'prompt,seed,seeds\n"a, b",1,\nc,,3\n',
        "tsv": "prompt\toutput\na\t{index:04}-{slug}\n",
        "yaml": "defaults: &d {steps: 4}\nitems:\n- a prompt\n- {<<: *d, prompt: b, references: [x.png]}\n",
        "txt": "# foxes\na red fox\n",
    }
    for number, form in enumerate(FORMATS):
        yield bytes([number]) + texts[form].encode()
    record = Started(key="ab" * 12, n=1, run="r", at=1.0, output="x.mp4")
    yield bytes([len(FORMATS)]) + encode(record) * 2


TARGETS = {
    "batch": Target(run_batch, (BatchInvalid, JournalUnusable), batch_seeds),
    "codec": Target(run_codec, (ProtocolViolation,), codec_seeds),
    "states": Target(run_states, (ProtocolViolation,), states_seeds, max_len=512),
    "ring": Target(run_ring, (CorruptFrame,), ring_seeds, max_len=256),
    "zmtp": Target(run_zmtp, (ProtocolViolation,), zmtp_seeds),
    "json": Target(run_json, (ModelCorrupt,), json_seeds),
    "safetensors": Target(run_safetensors, (ModelCorrupt,), safetensors_seeds),
    "gguf": Target(run_gguf, (ModelCorrupt,), gguf_seeds),
    "launch": Target(run_launch, (ProtocolViolation,), launch_seeds),
    "pickle": Target(run_pickle, (), pickle_seeds),
    "contents": Target(run_contents, (), contents_seeds),
    "control": Target(run_control, (ProtocolViolation,), control_seeds),
    "hub": Target(run_hub, (ModelCorrupt, FetchFailed, PickleRefused), hub_seeds),
}
