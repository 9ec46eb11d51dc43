"""What can be tried against each kind of failure, in order: what costs least and changes no pixel comes first.

    memory      tiles -> streaming -> encoder leaves, weights stay in files or come and go -> bfloat16
    frames      VAE in float32, other convolutions -> no layers in 8 bits -> attention by plain matrices -> a wider type
    decoding    as a whole -> PyTorch's own convolutions -> float32 -> tiles
    computing   float32 where types do not match, plain attention where a kernel is missing, a new worker for a GPU
    loading     without the attention backend or offload that this machine cannot do
    death       a new worker -> a leaner or plainer plan -> a new worker
    encoding    the kept latents once more
    device      the processor, where nobody asked for the GPU
    overdue     of decoding only: tiles, which need less memory at a time -> float32 -> other convolutions

No step touches the sandbox, the mode or what code may run: recovery may change a plan, a precision and a worker.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, Literal

from wan_compat.policies.recovery.steps import FIRST_DELAY_S, Failure, Kind, Situation, Step
from wan_compat.protocol.plan import DecodeSpec, GroupOffload, PlanSpec, Tiling
from wan_compat.protocol.values import ComponentSpec, PipelineSpec

Dtype = Literal["float32", "bfloat16", "float16"]

# Attention as plain matrix products: slower and larger, and free of fused kernels (diffusers' name for torch's).
PLAIN_ATTENTION = "_native_math"

_TILES = (Tiling(size=256, stride=192), Tiling(size=128, stride=96), Tiling(size=64, stride=48))
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}
_WIDER: dict[Dtype, Dtype] = {"float16": "bfloat16", "bfloat16": "float32"}

# Words of torch and diffusers, in lower case.
_TYPE_WORDS = ("dtype", "scalar type", "same type", "not implemented for", "should be the same", "did not match")
_ATTENTION_WORDS = ("attention", "no available kernel", "sage", "flash", "xformers")
_DEVICE_WORDS = ("cuda error", "cudnn", "cublas", "device-side assert")


def steps(failure: Failure, situation: Situation) -> Iterator[Step]:
    """Yield what could be tried, in order; nothing that changes nothing."""
    ladder = {
        "memory": _memory,
        "frames": _frames,
        "decoding": _decoding,
        "computing": _computing,
        "loading": _loading,
        "death": _death,
        "encoding": _encoding,
        "device": _device,
        "overdue": _overdue,
    }.get(failure.category)
    if ladder is not None:
        yield from ladder(failure, situation)


def _memory(failure: Failure, now: Situation) -> Iterator[Step]:
    if failure.phase in ("decode", "encode"):
        yield from _tiles(now, "generate")
        if now.pipeline.streaming == "never" and not _is_own(now):
            streamed = _with(now.pipeline, streaming="auto")
            yield Step("stream", "generate", "let each latent frame leave the VAE at once", streamed)
    yield from _offloads(now)
    yield from _narrower(now)


def _frames(failure: Failure, now: Situation) -> Iterator[Step]:
    if now.latents:
        yield from _decode_plainly(now)
    yield from _uncast(now)
    yield from _plain_attention(now)
    yield from _wider(now)


def _decoding(_failure: Failure, now: Situation) -> Iterator[Step]:
    if now.latents:
        whole = DecodeSpec(streaming="never")
        yield Step("decode_whole", "decode", "decode the kept latents as a whole", now.pipeline, whole)
        yield from _decode_plainly(now)
        yield from _tiles(now, "decode")
    else:
        yield Step("again", "generate", "generate once more", now.pipeline)


def _computing(failure: Failure, now: Situation) -> Iterator[Step]:
    words = failure.message.lower()
    if any(word in words for word in _DEVICE_WORDS):
        yield Step("restart", "restart", "start a new worker: the GPU's state cannot be trusted", now.pipeline)
        yield from _device(failure, now)
    if any(word in words for word in _ATTENTION_WORDS):
        yield from _plain_attention(now)
    if any(word in words for word in _TYPE_WORDS):
        yield from _in_float32(now)


def _loading(failure: Failure, now: Situation) -> Iterator[Step]:
    plan, words = now.pipeline.plan, failure.message
    if plan.attention_backend is not None and "attention" in words and "attention_backend" not in now.fixed:
        changed = _planned(now, attention_backend=None)
        yield Step("attention_default", "generate", "use the library's own attention", changed)
    if plan.offload == "group" and "offloaded" in words and "offload" not in now.fixed:
        model = _planned(now, offload="model" if now.pipeline.device != "cpu" else "none", group=None)
        yield Step("offload_model", "generate", "move whole models instead of groups of layers", model)


def _death(failure: Failure, now: Situation) -> Iterator[Step]:
    times = now.times("death")
    again = Step(
        f"restart_{times + 1}",
        "restart",
        "start a new worker",
        now.pipeline,
        delay_s=FIRST_DELAY_S * 2**times,
    )
    if failure.code in ("worker_silent", "worker_stalled", "worker_start_failed") and times:
        return  # it hangs, or this machine cannot start one: it will again, and a person waits
    if times == 1 and failure.signal == signal.SIGKILL:
        # Nobody says who killed it; a machine out of memory is the usual answer.
        yield from _offloads(now)
        yield from _narrower(now)
    if times == 1 and failure.signal in _CRASHES:
        yield from _without_kernels(now)
    yield again


def _encoding(_failure: Failure, now: Situation) -> Iterator[Step]:
    if now.latents:
        yield Step(
            "decode_again", "decode", "decode the kept latents again, for a new encoder", now.pipeline, DecodeSpec()
        )


def _overdue(failure: Failure, now: Situation) -> Iterator[Step]:
    # Denoising once more takes as long as it took. A decode that is this slow swaps, or hangs in a kernel.
    if failure.phase == "decode" and now.latents:
        yield from _tiles(now, "decode")
        yield from _decode_plainly(now)


def _device(_failure: Failure, now: Situation) -> Iterator[Step]:
    if now.on_cpu is not None and now.pipeline.device != "cpu":
        yield Step("cpu", "restart", "compute on the processor", now.on_cpu, changes_pixels=True)


# -- rungs -----------------------------------------------------------------------------------------------------------


def _tiles(now: Situation, otherwise: Kind) -> Iterator[Step]:
    """Smaller tiles than now, as long as a frame is larger than one."""
    if "vae_tiling" in now.fixed or _is_own(now):
        return
    plan = now.pipeline.plan
    used = plan.tiling.size if plan.tiling is not None else 1 << 20
    side = max(now.frames.height, now.frames.width)
    for tiling in (tiling for tiling in _TILES if tiling.size < min(used, side)):
        words = f"tiles of {tiling.size} pixels (seams may show)"
        if now.latents:
            decoding = DecodeSpec(tiling=tiling)
            yield Step(
                f"decode_tiles_{tiling.size}",
                "decode",
                f"decode the kept latents in {words}",
                now.pipeline,
                decoding,
                changes_pixels=True,
            )
        elif otherwise == "generate":
            changed = _planned(now, tiling=tiling)
            yield Step(f"tiles_{tiling.size}", "generate", f"decode in {words}", changed, changes_pixels=True)


def _decode_plainly(now: Situation) -> Iterator[Step]:
    if any(part.name == "vae" and part.dtype not in (None, "float32") for part in now.pipeline.components):
        yield Step(
            "decode_float32",
            "decode",
            "decode the kept latents in float32",
            now.pipeline,
            DecodeSpec(dtype="float32"),
            changes_pixels=True,
        )
    if now.pipeline.conv3d == "onednn":
        yield Step(
            "decode_default_conv",
            "decode",
            "decode the kept latents as a whole, with PyTorch's own convolutions",
            now.pipeline,
            DecodeSpec(conv3d="default", streaming="never"),
        )


def _offloads(now: Situation) -> Iterator[Step]:
    """Yield what keeps less in memory at a time; each includes those before."""
    if "offload" in now.fixed or _is_own(now):
        return
    plan = now.pipeline.plan
    has_encoder = any(part.name == "text_encoder" for part in now.pipeline.components)
    if plan.text_encoder == "stay" and has_encoder:
        left = _planned(now, text_encoder="leave")
        yield Step("text_encoder_leaves", "generate", "let the text encoder leave memory before denoising", left)
    leave: dict[str, Any] = {"text_encoder": "leave"} if has_encoder else {}
    if now.pipeline.device == "cpu":
        # Whatever is not as its library stores it cannot be read from its files piece by piece.
        plain = not now.pipeline.loras and all(
            part.source is None and part.quantization is None for part in now.pipeline.components
        )
        if plan.offload in ("none", "full") and plan.layerwise_casting is None and plain:
            disk = GroupOffload(level="block_level", disk=True)
            changed = _planned(now, offload="group", group=disk, **leave)
            yield Step(
                "weights_in_files", "generate", "leave the weights in their files until they are needed", changed
            )
        return
    chain: tuple[tuple[str, GroupOffload | None, str], ...] = (
        ("model", None, "keep one model at a time on the GPU"),
        ("group", GroupOffload(level="leaf_level", use_stream=True), "keep single layers on the GPU"),
        ("sequential", None, "move one layer at a time"),
    )
    order = ("none", "model", "group", "sequential", "full")
    for offload, group, action in chain:
        if order.index(offload) > order.index(plan.offload):
            changed = _planned(now, offload=offload, group=group, **leave)
            yield Step(f"offload_{offload}", "generate", action, changed)


def _narrower(now: Situation) -> Iterator[Step]:
    if "precision" in now.fixed or now.pipeline.code is not None:
        return
    if any(part.dtype == "float32" and part.name != "vae" for part in now.pipeline.components):
        changed = _typed(now.pipeline, lambda part: "bfloat16" if part.dtype == "float32" else part.dtype)
        yield Step("bfloat16", "generate", "compute in bfloat16 (changes pixels)", changed, changes_pixels=True)


def _wider(now: Situation) -> Iterator[Step]:
    if "precision" in now.fixed or now.pipeline.code is not None:
        return
    current: set[Dtype] = {part.dtype for part in now.pipeline.components if part.dtype is not None} - {"float32"}
    for dtype in sorted(current, reverse=True):  # float16 first: its range is what overflows
        wider = _WIDER[dtype]
        changed = _typed(now.pipeline, lambda part, wider=wider: _widened(part, wider))
        yield Step(f"widen_{wider}", "generate", f"compute in {wider} (changes pixels)", changed, changes_pixels=True)


def _widened(part: ComponentSpec, wider: Dtype) -> Dtype | None:
    if part.dtype in (None, "float32"):
        return part.dtype
    return "float32" if part.name == "vae" else wider


def _in_float32(now: Situation) -> Iterator[Step]:
    if "precision" in now.fixed or now.pipeline.code is not None:
        return
    if any(part.dtype not in (None, "float32") for part in now.pipeline.components):
        changed = _typed(now.pipeline, lambda part: None if part.dtype is None else "float32")
        yield Step("float32", "generate", "compute in float32 (changes pixels)", changed, changes_pixels=True)


def _uncast(now: Situation) -> Iterator[Step]:
    # Numbers beyond the range become infinite in float8_e5m2 and are cut off at 448 in float8_e4m3fn (torch 2.13).
    if now.pipeline.plan.layerwise_casting is not None and "layerwise_casting" not in now.fixed:
        words = "store the transformer's layers as they are, not in 8 bits (changes pixels)"
        yield Step("uncast", "generate", words, _planned(now, layerwise_casting=None), changes_pixels=True)


def _plain_attention(now: Situation) -> Iterator[Step]:
    if "attention_backend" in now.fixed or _is_own(now) or now.pipeline.plan.attention_backend == PLAIN_ATTENTION:
        return
    changed = _planned(now, attention_backend=PLAIN_ATTENTION)
    yield Step("plain_attention", "generate", "compute attention by plain matrix products", changed)


def _without_kernels(now: Situation) -> Iterator[Step]:
    changed = _with(now.pipeline, conv3d="default")
    if "attention_backend" not in now.fixed and not _is_own(now):
        plan = changed.plan.model_copy(update={"attention_backend": PLAIN_ATTENTION})
        changed = _with(changed, plan=plan)
    if changed != now.pipeline:
        yield Step(
            "plain_kernels", "generate", "start a new worker, without the kernels that may have crashed", changed
        )


def _is_own(now: Situation) -> bool:
    """A pipeline of the repository's own runs as it is, without a plan."""
    return now.pipeline.code is not None


def _planned(now: Situation, **changes: Any) -> PipelineSpec:
    plan: PlanSpec = now.pipeline.plan.model_copy(update=changes)
    return _with(now.pipeline, plan=plan)


def _with(pipeline: PipelineSpec, **changes: Any) -> PipelineSpec:
    return pipeline.model_copy(update=changes)


def _typed(pipeline: PipelineSpec, dtype: Any) -> PipelineSpec:
    components = tuple(part.model_copy(update={"dtype": dtype(part)}) for part in pipeline.components)
    return _with(pipeline, components=components)
