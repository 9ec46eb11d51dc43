"""What a Wan transformer takes during one forward pass, beside its weights: one block at work decides.

Walked through as in diffusers 0.42.1, transformer_wan.py. In units of the hidden states (tokens x dim): the caller of a
block holds what it gave it, normalisation and gates are computed in float32, queries and keys are rotated in float32,
and the feed-forward holds its inner states twice. With a timestep per token (`expand_timesteps`, TI2V-5B) the
modulation has twelve more units, which is more than all else.

Guidance calls the model twice, one after the other: it does not double anything here.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from wan_compat.policies.planning.arena import Arena, Peak
from wan_compat.policies.planning.attention import attention_workspace

_FLOAT32 = 4
_POSITIONS = 1024
TEXT_TOKENS = 512
_FREQUENCIES = 256  # freq_dim of every Wan
IMAGE_TOKENS = 257  # of CLIP ViT-H: a class token and 16 x 16 patches

# Parameters that stay float32 whatever is asked for: a component of the name is one of these
# (`_keep_in_fp32_modules` of the classes in diffusers 0.42.1).
_WAN_FLOAT32 = frozenset({"rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"})
KEPT_FLOAT32 = {
    "WanTransformer3DModel": _WAN_FLOAT32,
    "WanVACETransformer3DModel": _WAN_FLOAT32,
    "SkyReelsV2Transformer3DModel": _WAN_FLOAT32,
    "WanAnimateTransformer3DModel": _WAN_FLOAT32 | {"motion_synthesis_weight"},
    "WanAnimate2Transformer3DModel": frozenset(
        {"time_embedding", "time_projection", "scale_shift_table", "norm1", "norm2", "norm3", "modulation"}
    ),
    "ChronoEditTransformer3DModel": _WAN_FLOAT32 - {"rope"},
    "AnyFlowTransformer3DModel": _WAN_FLOAT32 - {"rope"},
    "AnyFlowFARTransformer3DModel": _WAN_FLOAT32 - {"rope"},
    "HeliosTransformer3DModel": (_WAN_FLOAT32 - {"rope"}) | {"history_key_scale"},
}


@dataclasses.dataclass(frozen=True)
class DenoiserShape:
    """Sizes of a Wan transformer.

    Args:
        vace_blocks: Blocks that make hints.
        image_tokens: What is attended to besides the text.
        timestep_per_token: The pipeline's `expand_timesteps`.
        face_size: Side of the square in which Animate sees a face.
        chunks: AnyFlow FAR's latent frames of each chunk; the last `full_chunks` of them are seen as they are, those
            before in patches of `shrunk_patch`.
        kept_units: Hidden states that are live between blocks besides those that a block is given.
    """

    dim: int = 5120
    heads: int = 40
    ffn_dim: int = 13824
    layers: int = 40
    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    text_dim: int = 4096
    vace_blocks: int = 0
    image_tokens: int = 0
    timestep_per_token: bool = False
    face_size: int = 0
    chunks: tuple[int, ...] = ()
    full_chunks: int = 3
    shrunk_patch: tuple[int, int, int] = (1, 4, 4)
    kept_units: int = 0

    @property
    def rope_bytes(self) -> int:
        """Sines and cosines of 1024 positions (`rope_max_seq_len`), buffers in float32 and in no file."""
        return 2 * _POSITIONS * (self.dim // self.heads) * _FLOAT32

    def tokens(self, latent: tuple[int, int, int]) -> int:
        """Return how many tokens latents of (frames, height, width) have."""
        return math.prod(side // patch for side, patch in zip(latent, self.patch_size, strict=True))


@dataclasses.dataclass(frozen=True)
class Forward:
    """One forward pass of one sequence.

    Args:
        latent: Frames, height and width of what goes in and comes out.
        tokens: All that the blocks compute, what goes before included.
        modulated: Frames have timesteps of their own, which are repeated for each token.
        queries, keys: Of self-attention that holds every score, 0 where a kernel holds none.
        cached: Tokens of keys and values that stay from pass to pass, of all layers.
    """

    latent: tuple[int, int, int]
    tokens: int
    modulated: bool = False
    queries: int = 0
    keys: int = 0
    cached: int = 0


@functools.lru_cache(maxsize=512)  # many ways to run share a size
def denoise_work(
    shape: DenoiserShape, forward: Forward, itemsize: int, *, text_tokens: int, threads: int, gpu: bool
) -> Peak:
    """Return what one forward pass takes at most, its input and output included."""
    latent, tokens = forward.latent, forward.tokens
    unit = tokens * shape.dim * itemsize
    walk = Arena()
    walk.take(math.prod(latent) * (shape.in_channels + shape.out_channels) * itemsize)
    walk.take(2 * tokens * (shape.dim // shape.heads) * _FLOAT32)  # rotary embeddings
    context = (text_tokens + shape.image_tokens) * shape.dim * itemsize
    with walk.holding(context, context):  # the text's projection has two layers
        pass
    walk.take(context)
    if shape.timestep_per_token:
        # The embedding of each token's timestep: two layers in float32, then six modulations.
        wide, frequencies = tokens * shape.dim * _FLOAT32, tokens * _FREQUENCIES * _FLOAT32
        with walk.holding(frequencies, frequencies, frequencies, wide, wide):
            pass
    if shape.timestep_per_token or forward.modulated:
        walk.take(unit)
        walk.take(6 * unit)
    walk.take(unit)  # what the model holds while a block works
    walk.take(shape.kept_units * unit)
    block = _Block(shape, forward, text_tokens, itemsize, threads, gpu=gpu)
    if shape.vace_blocks:
        # Control states, and the hint of each block that made one, until the main blocks take them up.
        walk.take((1 + shape.vace_blocks) * unit)
    block.walk(walk)
    return walk.peak


class _Block:
    """WanTransformerBlock."""

    def __init__(
        self, shape: DenoiserShape, forward: Forward, text_tokens: int, itemsize: int, threads: int, *, gpu: bool
    ) -> None:
        self._shape, self._tokens, self._text_tokens = shape, forward.tokens, text_tokens
        self._forward, self._modulated = forward, shape.timestep_per_token or forward.modulated
        self._itemsize, self._threads, self._gpu = itemsize, threads, gpu
        self._unit = forward.tokens * shape.dim * itemsize
        self._wide = forward.tokens * shape.dim * _FLOAT32

    def walk(self, walk: Arena) -> None:
        """Take and give as a block does; nothing stays. What the caller gave it is live already."""
        unit, wide = self._unit, self._wide
        modulation = 0
        if self._modulated:
            cast = 0 if self._itemsize == _FLOAT32 else 6 * wide
            with walk.holding(cast):
                modulation = walk.take(6 * wide)
        self._modulated_norm(walk)
        norm = walk.take(unit)
        if self._forward.queries:
            self._attend_scores(walk)
        else:
            self._attend(walk, keys=self._tokens, rotated=True)
        attended = walk.take(unit)
        self._gated_sum(walk)
        hidden = walk.take(unit)
        walk.give(norm)
        with walk.holding(*self._cast(), wide, norm):
            pass
        norm = walk.take(unit)
        self._attend(walk, keys=self._text_tokens, rotated=False)
        if self._shape.image_tokens:
            with walk.holding(4 * unit, unit):  # query, text's answer; the picture's answer and their sum
                pass
        walk.take(unit)
        walk.give(attended)
        walk.take(unit)  # the sum
        walk.give(hidden)
        self._modulated_norm(walk)
        inner = self._tokens * self._shape.ffn_dim * self._itemsize
        with walk.holding(inner, inner):
            pass
        with walk.holding(inner, unit):
            pass
        with walk.holding(unit):
            self._gated_sum(walk)
        walk.give(norm, attended, hidden, modulation)

    def _cast(self) -> tuple[int, ...]:
        """A float32 copy, where the type is another."""
        return () if self._itemsize == _FLOAT32 else (self._wide,)

    def _modulated_norm(self, walk: Arena) -> None:
        scaled = (self._wide,) if self._modulated else ()
        with walk.holding(*self._cast(), self._wide, self._wide, *scaled):
            pass

    def _gated_sum(self, walk: Arena) -> None:
        with walk.holding(*self._cast(), *self._cast(), self._wide):
            pass

    def _attend(self, walk: Arena, *, keys: int, rotated: bool) -> None:
        """WanAttnProcessor, from its input to its output; the result is not live any more."""
        unit, wide = self._unit, self._wide
        key = keys * self._shape.dim * self._itemsize
        with walk.holding(unit, key, key):
            if not self._gpu:
                # Without a fused kernel the norm squares, scales and weighs in float32.
                largest, times = max(unit, key), 6 if self._itemsize < _FLOAT32 else 2
                with walk.holding(largest * times):
                    pass
            if rotated:
                with walk.holding(unit, wide // 2, wide // 2, wide // 2):
                    pass
            head = self._shape.dim // self._shape.heads
            work = 0 if self._gpu else attention_workspace(self._tokens, keys, head, self._threads)
            walk.give(walk.kernel(unit, work))
            with walk.holding(unit, unit):
                pass

    def _attend_scores(self, walk: Arena) -> None:
        """PyTorch's eager flexible attention (torch/_higher_order_ops/flex_attention.py, math_attention): scores in
        float32, masked, and as shares of one, beside keys and values of all heads."""
        each, heads = self._shape.dim * self._itemsize, self._shape.heads
        queries, keys = self._forward.queries, self._forward.keys
        scores = heads * queries * keys * _FLOAT32
        with (
            walk.holding(3 * self._unit),  # projected, and rotated
            walk.holding(queries * each, 2 * keys * each),  # put together and filled up
            walk.holding(2 * keys * each),  # for all heads
        ):
            with walk.holding(scores, scores, scores):
                pass
