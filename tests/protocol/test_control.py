"""The messages of the control socket: each survives the wire, and nothing else passes."""

from __future__ import annotations

import typing

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_compat.protocol import codec
from wan_compat.protocol import control as c
from wan_compat.protocol.conversion import ConversionRequest
from wan_compat.protocol.errors import ProtocolViolation
from wan_compat.protocol.results import (
    CodeReport,
    ConversionReport,
    ConvertedFile,
    GenerationMetadata,
    LoraReport,
    OutputReport,
    SandboxReport,
    Timings,
)
from wan_compat.protocol.status import JobStatus, Note, SupervisorStatus, WorkerStatus
from wan_compat.protocol.values import GenerationRequest, LoraRequest

TO = c.to_supervisor_codec()
FROM = c.from_supervisor_codec()

REQUEST = GenerationRequest(
    model="/models/wan", prompt="ein Fuchs läuft \U0001f98a", seed=2**62, loras=(LoraRequest(path="/l.safetensors"),)
)
SANDBOX = SandboxReport("A", ["view", "seccomp"], 1 << 30, {"fork": True})
RESULT = c.ResultDocument(
    success=True,
    output_path="/v.mp4",
    frames=c.FramesDocument(shape=(9, 64, 96, 3), fps=16.0, duration=0.5625),
    generation_time=1.5,
    memory_used=1 << 20,
    metadata=GenerationMetadata("/models/wan", "WanPipeline", ["float32"], {"seed": 7}, {"python": "3"}),
    errors=[],
    warnings=["w"],
    timings=Timings(load_s=0.5),
    sandbox=SANDBOX,
    peak={"worker_rss_bytes": 1, "vram_bytes": None},
    recovery=[{"error": "a", "action": "b", "outcome": "succeeded"}],
    output=OutputReport("/v.mp4", "h264", 96, 64, 16.0, 9, "0" * 64, 2000),
    code=CodeReport("safe"),
    loras=[LoraReport("/l.safetensors", "transformer", 1.0, 3, 1, ["x"])],
)
CONVERSION = ConversionReport(
    *("/models/old", "/models/new", False, "WanPipeline", "wan", None),
    files=[ConvertedFile("vae/model.safetensors", 10, "0" * 64, 2)],
    dropped={"a.pth": ["b"]},
    unused=[],
    reasons=["r"],
    warnings=[],
    source_bytes=10,
    written_bytes=10,
    total_s=0.1,
    sandbox=SANDBOX,
    peak={"worker_rss_bytes": 1},
)
JOB = JobStatus(id="j1", state="running", model="/m", worker="w1", phase="denoise", step=1, total=2)
STATUS = SupervisorStatus(
    id="0a1b2c3d",
    pid=7,
    program="python app.py",
    version="0",
    mode="safe",
    started_unix_s=1.0,
    now_unix_s=2.0,
    workers=(WorkerStatus(id="w1", pid=8, activity="busy", mode="safe", tier="A", model="/m", unusual=("spins",)),),
    running=(JOB,),
    notes=(Note(at_unix_s=1.0, level="warning", text="n"),),
)
KEY = "0" * 32
REQUESTS = [
    c.Greet(program="python app.py"),
    c.GetStatus(),
    c.CancelJob(job="j1"),
    c.KillWorker(worker="w1"),
    c.Pause(),
    c.Resume(),
    c.Drain(),
    c.Submit(key=KEY, generation=REQUEST, priority=-5, group="g", label="l", cancel_on_disconnect=True),
    c.Submit(key=KEY, conversion=ConversionRequest(model="/models/old", output="/models/new")),
    c.FollowJob(job="j1", after=3),
    c.UnfollowJob(job="j1"),
    c.GetJob(job="j1"),
    c.GetResult(job="j1"),
]
REPLIES = [
    c.Greeting(supervisor="0a1b2c3d", pid=7, version="0", mode="safe", serves=True, read_only=False),
    c.StatusReply(status=STATUS),
    c.Done(done=True),
    c.Submitted(job="j1"),
    c.JobReply(status=JOB),
    c.JobEvent(job="j1", index=2, kind="Progress", fields={"phase": "denoise", "step": 1, "rate_s": None}),
    c.JobResult(generation=RESULT),
    c.JobResult(conversion=CONVERSION),
    c.Refusal(code="invalid_request", message="no", fixes=("so",), details={"model": "/m"}),
]


def name_of(message):
    return type(message).__name__


def test_every_message_is_sampled_here():
    for union, samples in ((c.ToSupervisor, REQUESTS), (c.FromSupervisor, REPLIES)):
        kinds = typing.get_args(typing.get_args(union)[0])
        assert {type(sample) for sample in samples} == set(kinds)


@pytest.mark.parametrize("message", REQUESTS, ids=name_of)
def test_every_request_survives_the_wire(message):
    assert TO.decode(TO.encode(message, 3)) == (3, message)


@pytest.mark.parametrize("message", REPLIES, ids=name_of)
def test_every_reply_survives_the_wire(message):
    assert FROM.decode(FROM.encode(message, 3)) == (3, message)


def wire(payload, version=c.CONTROL_VERSION, number=1):
    return msgpack.packb([version, number, payload])


@pytest.mark.parametrize(
    "payload",
    [
        {"type": "cancel_job"},
        {"type": "cancel_job", "job": "j1", "more": 1},
        {"type": "cancel_job", "job": "../j1"},
        {"type": "cancel_job", "job": "j" * 65},
        {"type": "cancel_job", "job": 1},
        {"type": "follow_job", "job": "j1", "after": -1},
        {"type": "follow_job", "job": "j1", "after": True},
        {"type": "greet", "program": "x" * 501},
        {"type": "submit", "key": "short", "generation": {"model": "/m", "prompt": "x"}},
        {"type": "submit", "key": KEY, "generation": {"model": "/m", "prompt": "x", "trust_remote_code": True}},
        {"type": "submit", "key": KEY, "generation": {"model": "/m", "prompt": "x" * 20_001}},
        {"type": "submit", "key": KEY, "generation": {"model": "/m", "prompt": "x", "mode": "yolo"}},
        {"type": "submit", "key": KEY, "generation": {"model": "/m", "prompt": "x"}, "priority": 101},
        {"type": "shutdown"},
        {"type": "status"},  # a reply
        {},
        [],
        "pause",
        None,
    ],
    ids=str,
)
def test_a_malformed_request_is_refused(payload):
    with pytest.raises(ProtocolViolation):
        TO.decode(wire(payload))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        wire({"type": "pause"}, version=c.CONTROL_VERSION + 1),
        wire({"type": "pause"}, number=0),
        wire({"type": "pause"}) + b"\x00",
        wire({"type": "pause"})[:-1],
        msgpack.packb({"type": "pause"}),
        wire({"type": "cancel_job", "job": b"j1"}),
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
    ],
    ids=range(10),
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ProtocolViolation):
        TO.decode(data)


def test_a_request_over_its_limit_is_refused_before_it_is_looked_at():
    with pytest.raises(ProtocolViolation, match="exceeds"):
        TO.decode(b"\xc0" * (c.REQUEST_LIMITS.message_bytes + 1))
    with pytest.raises(ProtocolViolation, match="exceeds"):
        TO.encode(c.Submit(key=KEY, generation=REQUEST.model_copy(update={"prompt": "x" * (600 << 10)})), 1)


def test_the_largest_status_fits():
    job = JOB.model_copy(update={"model": "m" * 500, "prompt": "p" * 500, "output": "o" * 500, "error": "e" * 500})
    note = Note(at_unix_s=1.0, level="error", text="t" * 500, code="c" * 64)
    worker = STATUS.workers[0].model_copy(update={"model": "m" * 500, "unusual": ("u" * 500,) * 8})
    full = STATUS.model_copy(
        update={
            "workers": (worker,) * 64,
            "running": (job,) * 200,
            "queued": (job,) * 200,
            "ended": (job,) * 200,
            "notes": (note,) * 100,
        }
    )
    reply = c.StatusReply(status=full)
    assert FROM.decode(FROM.encode(reply, 1)) == (1, reply)


def test_limits_of_workers_are_not_those_of_clients():
    assert codec.WORKER_LIMITS.message_bytes == codec.MAX_MESSAGE_BYTES == 256 << 10
    assert c.REPLY_LIMITS.message_bytes > c.REQUEST_LIMITS.message_bytes > codec.MAX_MESSAGE_BYTES


SAMPLES = [TO.encode(message, 3) for message in REQUESTS] + [FROM.encode(message, 3) for message in REPLIES]


@settings(max_examples=200, deadline=None)
@given(
    sample=st.sampled_from(SAMPLES),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=8)), max_size=6),
)
def test_mutated_messages_are_accepted_or_a_typed_refusal(sample, changes):
    data = bytearray(sample)
    for position, replacement in changes:
        position %= len(data) + 1
        data[position : position + len(replacement)] = replacement
    for one in (TO, FROM):
        try:
            one.decode(bytes(data))
        except ProtocolViolation:
            continue
