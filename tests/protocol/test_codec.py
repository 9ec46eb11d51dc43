"""The codec takes well-formed messages and nothing else, at a bounded cost."""

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_compat.protocol import codec
from wan_compat.protocol import messages as m
from wan_compat.protocol.conversion import ListedTensor, TensorPiece, WeightSource
from wan_compat.protocol.errors import ProtocolViolation
from wan_compat.protocol.plan import DecodeSpec, Tiling
from wan_compat.protocol.values import CodeSpec, ComponentSpec, FrameSpec, GenerationParams, PipelineSpec

FROM_WORKER = codec.from_worker_codec()
TO_WORKER = codec.to_worker_codec()

PROBE = m.Probe(name="inet_socket", denied=True, detail="EPERM")
PIPELINE = PipelineSpec(
    pipeline_class="WanPipeline",
    components=(ComponentSpec(name="vae", library="diffusers", class_name="AutoencoderKLWan", subfolder="vae"),),
    boundary_ratio=0.875,
    threads=2,
)
OWN_CODE = PIPELINE.model_copy(
    update={
        "code": CodeSpec(module="blocks/wan_blocks.py", class_name="OwnBlocks"),
        "code_kind": "blocks",
        "settings": {"strength": 0.5, "invert": True, "steps": 3, "note": "x", "nothing": None},
    }
)
PARAMS = GenerationParams(
    prompt="ein Fuchs läuft \U0001f98a",
    seed=2**62,
    num_inference_steps=4,
    guidance_scale=5.0,
    frames=FrameSpec(height=64, width=96, num_frames=17),
)

SAMPLES_FROM_WORKER = [
    m.Hello(protocol_version=1, layers=("view", "seccomp"), probes=(PROBE,), versions={"torch": "2.13"}, entry_s=0.01),
    m.Ready(probes=(PROBE,)),
    m.Progress(job=0, phase="load", step=1, total=5),
    m.ModelLoaded(
        pipeline_class="WanPipeline", parameters={"vae": 5}, streaming=True, streaming_reason="equal", load_s=0.2
    ),
    m.PartLoaded(component="vae", parameters=5, tensor_bytes=20, not_finite=("vae: conv_in.bias",), load_s=0.1),
    m.Generated(job=1, text_encode_s=0.1, denoise_s=1.0, decode_s=0.5),
    m.TensorsListed(file=0, tensors=(ListedTensor(name="blocks.0.norm1.weight", dtype="BF16", shape=(4, 2)),)),
    m.WeightsOpened(),
    m.TensorsSent(job=1),
    m.Cancelled(job=3),
    m.Failed(job=1, code="unusable_frames", message="NaN", fixes=("try another seed",)),
    m.Pong(nonce=7),
]
SAMPLES_TO_WORKER = [
    m.Welcome(),
    m.LoadModel(pipeline=PIPELINE),
    m.LoadModel(pipeline=OWN_CODE),
    m.Generate(job=1, params=PARAMS),
    m.DecodeAgain(
        job=2, frames=PARAMS.frames, decoding=DecodeSpec(dtype="float32", tiling=Tiling(size=128, stride=96))
    ),
    m.LoadPart(pipeline=PIPELINE, component="vae"),
    m.OpenWeights(files=(WeightSource(path="Wan2.1_VAE.pth", is_pickle=True),)),
    m.SendTensors(job=1, pieces=(TensorPiece(file=0, name="conv1.weight", offset=8, size=16),)),
    m.Cancel(job=1),
    m.Ping(nonce=7),
    m.Shutdown(),
]


@pytest.mark.parametrize("message", SAMPLES_FROM_WORKER, ids=lambda message: message.type)
def test_every_message_of_a_worker_survives_the_wire(message):
    assert FROM_WORKER.decode(FROM_WORKER.encode(message, 3)) == (3, message)


@pytest.mark.parametrize("message", SAMPLES_TO_WORKER, ids=lambda message: message.type)
def test_every_message_to_a_worker_survives_the_wire(message):
    assert TO_WORKER.decode(TO_WORKER.encode(message, 3)) == (3, message)


@pytest.mark.parametrize(
    "module",
    [
        "/etc/x.py",
        "../x.py",
        "a/../x.py",
        "x.pyc",
        "x",
        ".py",
        "a//x.py",
        "a b.py",
        "x.py\n",
        "a/b/c/d/e/x.py",
        "-x.py",
    ],
)
def test_code_is_named_by_a_path_inside_the_model_only(module):
    with pytest.raises(ValueError, match="module"):
        CodeSpec(module=module, class_name="X")


def test_samples_cover_every_message():
    import typing

    def types(union):
        return set(typing.get_args(typing.get_args(union)[0]))

    assert {type(sample) for sample in SAMPLES_FROM_WORKER} == types(m.FromWorker)
    assert {type(sample) for sample in SAMPLES_TO_WORKER} == types(m.ToWorker)


def packed(payload, version=m.PROTOCOL_VERSION, seq=1):
    return msgpack.packb([version, seq, payload])


def listed(file=0, **fields):
    tensor = {"name": "x", "dtype": "F32", "shape": [1]} | fields
    return packed({"type": "tensors_listed", "file": file, "tensors": [tensor]})


PONG = {"type": "pong", "nonce": 1}

MALFORMED = {
    "empty": b"",
    "not msgpack": b"\xc1",
    "truncated": packed(PONG)[:-1],
    "trailing byte": packed(PONG) + b"\x00",
    "two messages": packed(PONG) * 2,
    "bare map": msgpack.packb(PONG),
    "too few parts": msgpack.packb([1, 1]),
    "version as float": packed(PONG, version=1.0),
    "version as true": packed(PONG, version=True),
    "other version": packed(PONG, version=m.PROTOCOL_VERSION + 1),
    "sequence zero": packed(PONG, seq=0),
    "sequence negative": packed(PONG, seq=-1),
    "sequence huge": packed(PONG, seq=2**63),
    "body is a list": packed([PONG]),
    "no type": packed({"nonce": 1}),
    "unknown type": packed({"type": "reboot"}),
    "message of the other direction": packed({"type": "welcome"}),
    "unknown key": packed(PONG | {"extra": 1}),
    "missing key": packed({"type": "pong"}),
    "number as string": packed({"type": "pong", "nonce": "1"}),
    "number as float": packed({"type": "pong", "nonce": 1.0}),
    "number as bool": packed({"type": "pong", "nonce": True}),
    "negative count": packed({"type": "pong", "nonce": -1}),
    "count beyond range": packed({"type": "pong", "nonce": 2**63}),
    "binary instead of string": packed({"type": b"pong", "nonce": 1}),
    "binary key": packed({b"type": "pong", "nonce": 1}),
    "integer key": packed({1: 2, "type": "pong", "nonce": 1}),
    "nil key": packed({None: 2, "type": "pong", "nonce": 1}),
    "extension type": packed({"type": "pong", "nonce": msgpack.ExtType(5, b"x")}),
    "timestamp": packed({"type": "pong", "nonce": msgpack.Timestamp(1)}),
    "invalid utf-8": packed({"type": "pong", "nonce": 1}).replace(b"pong", b"p\xff\xfeg"),
    "infinite seconds": packed(
        {"type": "generated", "job": 1, "text_encode_s": float("inf"), "denoise_s": 0.0, "decode_s": 0.0}
    ),
    "nan seconds": packed(
        {"type": "generated", "job": 1, "text_encode_s": float("nan"), "denoise_s": 0.0, "decode_s": 0.0}
    ),
    "claimed array of 4 billion": packed(PONG)[:2] + b"\xdd\xff\xff\xff\xff",
    "claimed map of 4 billion": packed(PONG)[:2] + b"\xdf\xff\xff\xff\xff",
    "claimed string of 4 billion": packed(PONG)[:2] + b"\xdb\xff\xff\xff\xff",
    "nested lists": packed({"type": "pong", "nonce": [[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]}),
    "ten thousand open lists": b"\x91" * 10_000,
    "too many items": packed({"type": "pong", "nonce": list(range(5000))}),
    "too long a text": packed({"type": "failed", "job": 1, "code": "x", "message": "m" * 5000}),
    "too long a message": packed({"type": "failed", "job": 1, "code": "x", "message": "m" * (300 << 10)}),
    "tensor name with a blank": listed(name="a b"),
    "tensor name without an end": listed(name="x" * 257),
    "tensor of an unknown type": listed(dtype="OBJECT"),
    "tensor of negative size": listed(shape=[-1]),
    "tensor of nine dimensions": listed(shape=[1] * 9),
    "tensor of a size beyond range": listed(shape=[2**41]),
    "tensors of a file beyond range": listed(file=64),
    "more tensors than a message may list": packed(
        {"type": "tensors_listed", "file": 0, "tensors": [{"name": "x", "dtype": "F32", "shape": []}] * 401}
    ),
    "code with markup": packed({"type": "failed", "job": 1, "code": "x\x1b[31m", "message": "m"}),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_message_is_a_violation(data):
    with pytest.raises(ProtocolViolation):
        FROM_WORKER.decode(data)


def test_duplicate_keys_never_yield_a_message_that_was_not_checked_whole():
    # msgpack keeps the last of two equal keys; the schema then judges what was kept, so nothing unjudged passes.
    data = b"\x93\x01\x01\x83" + msgpack.packb("type") + msgpack.packb("pong") + msgpack.packb("nonce") + b"\x01"
    data += msgpack.packb("nonce") + msgpack.packb("x")
    with pytest.raises(ProtocolViolation):
        FROM_WORKER.decode(data)


@settings(max_examples=250, deadline=None)
@given(st.binary(max_size=2000))
def test_random_bytes_raise_nothing_but_violations(data):
    with pytest.raises(ProtocolViolation):
        FROM_WORKER.decode(data)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=30,
)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(SAMPLES_FROM_WORKER), st.data())
def test_a_message_with_one_value_replaced_decodes_to_a_message_or_a_violation(message, data):
    payload = message.model_dump(mode="python")
    payload[data.draw(st.sampled_from(sorted(payload)))] = data.draw(PLAIN)
    try:
        seq, decoded = FROM_WORKER.decode(msgpack.packb([1, 1, payload]))
    except ProtocolViolation:
        return
    assert seq == 1
    assert type(decoded) in {type(sample) for sample in SAMPLES_FROM_WORKER}
    assert FROM_WORKER.decode(FROM_WORKER.encode(decoded, 1)) == (1, decoded)


def test_our_own_oversized_message_is_refused_before_it_is_sent():
    big = m.Failed(job=1, code="x", message="é" * 4000, fixes=("f" * 500,) * 8)
    assert len(FROM_WORKER.encode(big, 1)) < codec.MAX_MESSAGE_BYTES
    with pytest.raises(ProtocolViolation):
        codec.check_structure(b"\xdb" + (codec.MAX_STRING_BYTES + 1).to_bytes(4, "big") + b"x")


HELLO_BYTES = FROM_WORKER.encode(SAMPLES_FROM_WORKER[0], 1)


@pytest.mark.parametrize(
    ("width", "height", "pixels"),
    [
        (2, 1, "AAEC"),  # too few
        (2, 1, "AAECAwQFBgcI"),  # too many
        (2, 1, "AAECAwQ!"),
        (2, 1, "\x00" * 8),
        (0, 1, ""),
        (257, 1, "A" * 1028),
        (256, 256, "A" * 262144),
        (10**9, 10**9, "AAEC"),
    ],
)
def test_a_picture_is_exactly_as_long_as_its_size_and_small(width: int, height: int, pixels: str):
    with pytest.raises(ValueError, match=r"pixels|width|height"):
        m.Picture(width=width, height=height, pixels=pixels)


def test_the_largest_picture_fits_into_a_message():
    picture = m.Picture(width=128, height=128, pixels="A" * (4 * m.MAX_PICTURE_BYTES // 3))
    message = m.Progress(job=1, phase="denoise", step=1, total=5, picture=picture)
    assert FROM_WORKER.decode(FROM_WORKER.encode(message, 3)) == (3, message)
