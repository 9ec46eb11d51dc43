"""A real zygote with real workers, in which one thing goes wrong: tests/faults says what.

    faulty_zygote.py FILE --control-fd N --parent-pid P

FILE holds the name of a fault, and may change between workers; it is read before each fork. A fault is put into the
forked, confined worker before it does anything: a library's function that fails as it does on a machine where it
fails. `first` faults spare every worker but the first one since the file changed.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wan_compat.workers.zygote as zygote

FILE = Path(sys.argv.pop(1))
ALLOCATION = (
    "[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 GB"
)
_seen = {"name": "", "workers": 0}


def plain_attention() -> bool:
    """Whether attention was asked to be computed by plain matrix products."""
    import torch

    return not torch.backends.cuda.flash_sdp_enabled() and not torch.backends.cuda.mem_efficient_sdp_enabled()


def instead_of_attention(act: Callable[[Any], Any]) -> None:
    """Spoil the transformer's attention, unless it is computed by plain matrix products. Others have theirs."""
    import torch
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    original, forward, inside = torch.nn.functional.scaled_dot_product_attention, WanTransformer3DModel.forward, []

    def transform(self: Any, *args: Any, **options: Any) -> Any:
        inside.append(True)
        try:
            return forward(self, *args, **options)
        finally:
            inside.pop()

    def attend(*args: Any, **options: Any) -> Any:
        value = original(*args, **options)
        return act(value) if inside and not plain_attention() else value

    torch.nn.functional.scaled_dot_product_attention = attend
    WanTransformer3DModel.forward = transform


def before_forward(class_name: str, act: Callable[[Any, Any], None]) -> None:
    """Let `act(module, input)` run before each forward of a class of diffusers."""
    import diffusers.models.autoencoders.autoencoder_kl_wan as autoencoder
    import diffusers.models.transformers.transformer_wan as transformer

    kind = getattr(autoencoder, class_name, None) or getattr(transformer, class_name)
    original = kind.forward

    def forward(self: Any, value: Any = None, *args: Any, **options: Any) -> Any:
        value = options.pop("hidden_states", value)
        changed = act(self, value)
        return original(self, value if changed is None else changed, *args, **options)

    kind.forward = forward


def after_forward(class_name: str, act: Callable[[Any, Any], Any]) -> None:
    import diffusers.models.autoencoders.autoencoder_kl_wan as autoencoder
    import diffusers.models.transformers.transformer_wan as transformer

    kind = getattr(autoencoder, class_name, None) or getattr(transformer, class_name)
    original = kind.forward

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        return act(self, original(self, *args, **options))

    kind.forward = forward


def fail(kind: type[BaseException], text: str) -> None:
    raise kind(text)


def once(act: Callable[[], None]) -> Callable[..., None]:
    left = [1]

    def maybe(*_: Any) -> None:
        if left:
            left.pop()
            act()

    return maybe


def proving(value: Any) -> bool:
    """The load-time proof of streaming decodes a clip of 4x4 latents, and is left alone."""
    return max(value.shape[-2:]) <= 6


# ---- the faults -----------------------------------------------------------------------------------------------------


def oom_decode() -> None:
    def act(_module: Any, value: Any) -> None:
        if max(value.shape[-2:]) > 8:
            fail(RuntimeError, ALLOCATION)

    before_forward("WanDecoder3d", act)


def oom_denoise() -> None:
    """No room for the transformer's work beside the text encoder."""
    import transformers

    loaded: list[Any] = []
    original = transformers.UMT5EncoderModel.from_pretrained.__func__

    def from_pretrained(kind: Any, *args: Any, **options: Any) -> Any:
        made = original(kind, *args, **options)
        loaded.append(made[0])
        return made

    transformers.UMT5EncoderModel.from_pretrained = classmethod(from_pretrained)

    def act(_module: Any, _value: Any) -> None:
        if any(any(parameter.stride()) for parameter in loaded[0].parameters()):  # a placeholder has no strides
            fail(RuntimeError, ALLOCATION)

    before_forward("WanTransformer3DModel", act)


def oom_always() -> None:
    before_forward("WanTransformer3DModel", lambda *_: fail(RuntimeError, ALLOCATION))


def oom_load() -> None:
    """No room for a transformer that is read as a whole."""
    import diffusers

    diffusers.WanTransformer3DModel.from_pretrained = classmethod(lambda *_, **__: fail(MemoryError, "12 GB"))


def oom_text_encoder() -> None:
    """No room for the largest part of a Wan model, read as a whole."""
    import transformers

    transformers.UMT5EncoderModel.from_pretrained = classmethod(lambda *_, **__: fail(MemoryError, "11 GB"))


def driver_error() -> None:
    """The first worker has a GPU whose driver gave up."""
    text = "CUDA error: unspecified launch failure"
    before_forward("WanTransformer3DModel", lambda *_: fail(RuntimeError, text))


def memory_cap() -> None:
    """The first worker takes more than its cap while it denoises, and is killed for it."""
    before_forward("WanTransformer3DModel", hoard)


def memory_cap_load() -> None:
    """The same while it reads the largest part."""
    import transformers

    transformers.UMT5EncoderModel.from_pretrained = classmethod(hoard)


def memory_cap_decode() -> None:
    before_forward("WanDecoder3d", lambda _, value: None if proving(value) else hoard())


def hoard(*_: Any, **__: Any) -> None:
    hoard = []
    while True:
        hoard.append(bytearray(os.urandom(1 << 16) * 256))


def nan_attention() -> None:
    instead_of_attention(lambda value: value * float("nan"))


def black_attention() -> None:
    """Attention that overflows to a constant; with it the whole video is black."""
    import torch

    state = {"broken": False}

    def act(value: Any) -> Any:
        state["broken"] = True
        return value

    instead_of_attention(act)
    after_forward("WanDecoder3d", lambda _, value: torch.full_like(value, -9) if state["broken"] else value)


def nan_convolution() -> None:
    import torch

    original = torch.mkldnn_convolution
    torch.mkldnn_convolution = lambda value, *rest: (
        original(value, *rest) if proving(value) else original(value, *rest) * float("nan")
    )


def nan_decode_once() -> None:
    state = {"left": 1}

    def act(_module: Any, value: Any) -> Any:
        if state["left"] and value.shape[-1] >= 96:
            state["left"] = 0
            return value * float("nan")
        return value

    after_forward("WanDecoder3d", act)


def decode_once() -> None:
    maybe = once(lambda: fail(RuntimeError, "could not execute a primitive"))
    before_forward("WanDecoder3d", lambda _, value: None if proving(value) else maybe())


def decode_streaming() -> None:
    """What streaming calls behaves otherwise on large clips than on the one that it was proved on."""
    import wan_compat.workers.streaming as streaming

    original = streaming.decode_pieces

    def pieces(vae: Any, z: Any) -> Any:
        if not proving(z):
            fail(IndexError, "list index out of range")
        return original(vae, z)

    streaming.decode_pieces = pieces


def attention_kernel() -> None:
    instead_of_attention(lambda _value: fail(RuntimeError, "No available kernel. Aborting execution."))


def crash_denoise() -> None:
    before_forward("WanTransformer3DModel", lambda *_: ctypes.string_at(1))


def crash_convolution() -> None:
    import torch

    original = torch.mkldnn_convolution
    torch.mkldnn_convolution = lambda value, *rest: original(value, *rest) if proving(value) else ctypes.string_at(1)


def exit_at_start() -> None:
    os._exit(3)


def hang() -> None:
    before_forward("WanTransformer3DModel", lambda *_: ctypes.PyDLL(None).sleep(600))


def deadlock() -> None:
    """A thread waits for a lock that nobody gives back; the interpreter goes on, and so does the control thread."""
    import threading

    lock = threading.Lock()
    before_forward("WanTransformer3DModel", lambda *_: lock.acquire() and None)


def fewer_arguments() -> None:
    """The pipeline of a diffusers that did not have all of them yet."""

    def call(original: Any) -> Any:
        def __call__(
            self: Any, prompt: Any = None, negative_prompt: Any = None, height: int = 480, width: int = 832,
            num_frames: int = 81, num_inference_steps: int = 50, guidance_scale: float = 5.0, generator: Any = None,
            callback_on_step_end: Any = None,
        ) -> Any:  # fmt: skip
            given = {name: value for name, value in locals().items() if name not in ("self", "original")}
            return original(self, **given, output_type="pt")

        return __call__

    instead_of_call(call)


def other_arguments() -> None:
    """The pipeline of a diffusers that calls the same by other names, and wants one more."""

    def call(original: Any) -> Any:
        def __call__(
            self: Any, prompt: Any, batch_size: int, num_video_frames: int, num_steps: int = 50, **others: Any
        ) -> Any:
            assert batch_size == 1
            return original(self, prompt, num_frames=num_video_frames, num_inference_steps=num_steps, **others)

        return __call__

    instead_of_call(call)


def instead_of_call(make: Callable[[Any], Any]) -> None:
    import diffusers

    diffusers.WanPipeline.__call__ = make(diffusers.WanPipeline.__call__)


def slow() -> None:
    """Time enough to be killed in, in every phase."""
    before_forward("WanTransformer3DModel", lambda *_: time.sleep(0.3))
    before_forward("WanDecoder3d", lambda _, value: time.sleep(0 if proving(value) else 0.8))


FIRST_WORKER_ONLY = {
    "memory_cap",
    "memory_cap_load",
    "memory_cap_decode",
    "driver_error",
    "crash_denoise",
    "exit_at_start",
    "hang",
    "deadlock",
}


def launch(self: zygote.Zygote, order: Any, descriptors: Any, original: Any = zygote.Zygote._launch) -> Any:
    name = FILE.read_text()
    if name != _seen["name"]:
        _seen.update(name=name, workers=0)
    _seen["workers"] += 1
    return original(self, order, descriptors)


def be_faulty(*args: Any, original: Any = zygote._be_worker) -> None:
    name = _seen["name"].partition("#")[0]  # what follows makes it another fault, for the counting
    if name and (name not in FIRST_WORKER_ONLY or _seen["workers"] == 1):
        globals()[name]()
    original(*args)


if __name__ == "__main__":
    zygote._be_worker = be_faulty
    zygote.Zygote._launch = launch
    zygote.main()
