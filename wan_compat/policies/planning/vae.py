"""What AutoencoderKLWan takes while it decodes and encodes, layer by layer, beside its own weights.

Wan's VAE works on one latent frame at a time and carries the last two frames of the input of every causal convolution
along (`feat_cache`). So two things are in memory: the features carried along, which are most of it at large sizes, and
what the layer at work takes. Both are walked through as in diffusers 0.42.1, autoencoder_kl_wan.py; names are its own.

The first latent frame gives one frame and any other `scale_factor_temporal`; the peak is in one of the first three
(nothing carried yet, carried once, carried always).
"""

from __future__ import annotations

import dataclasses
import functools

from wan_compat.policies.planning.arena import Arena, Peak
from wan_compat.policies.planning.attention import attention_workspace

_CARRIED_FRAMES = 2  # CACHE_T
_STATES = 3
_FLOAT32 = 4
_BLOCKED_CHANNELS = 16  # oneDNN pads channels to its vectors


@dataclasses.dataclass(frozen=True)
class VaeShape:
    """Sizes of AutoencoderKLWan, by the names of its config."""

    base_dim: int = 96
    decoder_base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    is_residual: bool = False
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int = 1
    scale_factor_spatial: int = 8
    scale_factor_temporal: int = 4

    def latent(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return latent frames, height and width."""
        frames = (num_frames - 1) // self.scale_factor_temporal + 1
        return frames, height // self.scale_factor_spatial, width // self.scale_factor_spatial


@dataclasses.dataclass(frozen=True)
class Work:
    """The peak, and what of it is carried from one latent frame to the next."""

    peak: Peak
    carried: int


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A tensor of (channels, frames, height, width)."""

    channels: int
    frames: int
    height: int
    width: int


class _Walk:
    """One pass through encoder or decoder. Features are kept from one latent frame to the next."""

    def __init__(self, itemsize: int, threads: int) -> None:
        self.arena = Arena()
        self._itemsize, self._threads = itemsize, threads
        self._carried: list[int] = []
        self._index = 0
        self._first = True

    def begin(self, first: bool) -> None:
        self._index, self._first = 0, first

    def bytes(self, piece: _Piece) -> int:
        return piece.channels * piece.frames * piece.height * piece.width * self._itemsize

    @property
    def carried(self) -> int:
        return sum(self._carried)

    # Each of these takes a piece that its caller holds, returns one that is live, and gives back all else.

    def causal(self, piece: _Piece, channels: int, kernel: tuple[int, int, int]) -> _Piece:
        """A causal convolution: the carried frames in front, padding, the convolution; then carries its own input."""
        arena = self.arena
        kept = self.bytes(dataclasses.replace(piece, frames=min(_CARRIED_FRAMES, piece.frames + self._seen())))
        arena.take(kept)
        before = 0 if self._first else _CARRIED_FRAMES if kernel[0] > 1 else 0
        joined = dataclasses.replace(piece, frames=piece.frames + before) if before else None
        if joined is not None:
            arena.take(self.bytes(joined))
        spread = kernel[1] // 2 * 2
        padded = _Piece(
            piece.channels,
            piece.frames + (kernel[0] - 1),
            piece.height + spread,
            piece.width + spread,
        )
        arena.take(self.bytes(padded))
        if joined is not None:
            arena.give(self.bytes(joined))
        made = dataclasses.replace(piece, channels=channels)
        self._convolve(padded, made, kernel)
        arena.give(self.bytes(padded))
        self._carry(kept)
        return made

    def plain(self, piece: _Piece, channels: int) -> _Piece:
        """A 1x1x1 convolution that carries nothing; it pads all the same, by nothing, which copies."""
        self.arena.take(self.bytes(piece))
        made = dataclasses.replace(piece, channels=channels)
        self._convolve(piece, made, (1, 1, 1))
        self.arena.give(self.bytes(piece))
        return made

    def norm(self, piece: _Piece) -> None:
        """RMS norm and activation: takes one more of the piece; three are live in between."""
        size = self.bytes(piece)
        with self.arena.holding(size, size):
            pass
        self.arena.take(size)

    def residual(self, piece: _Piece, channels: int) -> _Piece:
        """WanResidualBlock; gives its input back."""
        arena, size = self.arena, self.bytes(piece)
        shortcut = self.plain(piece, channels) if channels != piece.channels else None
        self.norm(piece)
        middle = self.causal(piece, channels, (3, 3, 3))
        arena.give(size)
        # norm2 and its activation: the convolution's result is let go when the norm's stands.
        self.norm(middle)
        arena.give(self.bytes(middle))
        made = self.causal(middle, channels, (3, 3, 3))
        arena.give(self.bytes(middle))
        arena.take(self.bytes(made))  # the sum
        arena.give(self.bytes(made))
        if shortcut is not None:
            arena.give(self.bytes(shortcut))
        arena.give(size)
        return made

    def attention(self, piece: _Piece) -> _Piece:
        """WanAttentionBlock: one head over each frame."""
        arena, size = self.arena, self.bytes(piece)
        work = attention_workspace(
            piece.height * piece.width, piece.height * piece.width, piece.channels, self._threads
        )
        with arena.holding(size, size, 3 * size, 3 * size):  # reordered, normed, qkv, and that in another order
            pass
        with arena.holding(size, 3 * size):
            arena.give(arena.kernel(size, work))
        with arena.holding(3 * size, size, size):
            pass
        return piece

    def upsample(self, piece: _Piece, channels: int, *, in_time: bool) -> _Piece:
        """WanResample upwards; gives its input back."""
        arena, given = self.arena, self.bytes(piece)  # the caller holds what it gave until all is done
        stacked = 0
        if in_time and self._first:
            self._carry(0)
        elif in_time:
            doubled = self.causal(piece, 2 * piece.channels, (3, 1, 1))
            stacked = arena.take(self.bytes(doubled))
            arena.give(self.bytes(doubled))
            piece = dataclasses.replace(piece, frames=2 * piece.frames)
        size = arena.take(self.bytes(piece))  # frames in front of channels
        arena.give(stacked)
        large = dataclasses.replace(piece, height=2 * piece.height, width=2 * piece.width)
        if self._itemsize < _FLOAT32:  # WanUpsample interpolates in float32 whatever the type
            with arena.holding(2 * size, self.bytes(large) * _FLOAT32 // self._itemsize):
                arena.take(self.bytes(large))
        else:
            arena.take(self.bytes(large))
        made = dataclasses.replace(large, channels=channels)
        self._convolve(large, made, (1, 3, 3))
        arena.give(self.bytes(large), size, given)
        return made

    def downsample(self, piece: _Piece, *, in_time: bool) -> _Piece:
        """WanResample downwards; gives its input back."""
        arena, size = self.arena, self.bytes(piece)
        made = dataclasses.replace(piece, height=piece.height // 2, width=piece.width // 2)
        arena.take(2 * size)  # frames in front of channels, then padded
        self._convolve(piece, made, (1, 3, 3))
        arena.give(2 * size, size)
        if in_time and self._first:
            self._carry(arena.take(self.bytes(made)))
        elif in_time:
            kept = arena.take(self.bytes(dataclasses.replace(made, frames=1)))
            with arena.holding(self.bytes(made) + kept, self.bytes(made) + kept):
                half = dataclasses.replace(made, frames=max(1, made.frames // 2))
                self._convolve(made, half, (3, 1, 1))
            arena.give(self.bytes(made))
            made = half
            self._carry(kept)
        return made

    def _convolve(self, source: _Piece, made: _Piece, kernel: tuple[int, int, int]) -> None:
        """Take the result of a convolution; for its time the library's reordered input and weights too."""
        blocked = self.bytes(
            dataclasses.replace(made, channels=-(-made.channels // _BLOCKED_CHANNELS) * _BLOCKED_CHANNELS)
        )
        weights = source.channels * made.channels * kernel[0] * kernel[1] * kernel[2] * self._itemsize
        self.arena.kernel(self.bytes(made), max(self.bytes(source), blocked) + weights)

    def _seen(self) -> int:
        return 0 if self._first else _CARRIED_FRAMES

    def _carry(self, size: int) -> None:
        """Keep what the next latent frame needs in place of what was kept for this one."""
        if self._index < len(self._carried):
            self.arena.give(self._carried[self._index])
            self._carried[self._index] = size
        else:
            self._carried.append(size)
        self._index += 1


@functools.lru_cache(maxsize=512)  # many ways to run share a size
def decode_work(
    vae: VaeShape, height: int, width: int, itemsize: int, threads: int = 1, latent_frames: int = _STATES
) -> Work:
    """Return what decoding frames of (height, width) takes, latent frame by latent frame.

    Neither the latents nor the frames that were made before count, nor the weights.
    """
    walk = _Walk(itemsize, threads)
    latent_height, latent_width = height // vae.scale_factor_spatial, width // vae.scale_factor_spatial
    for state in range(min(_STATES, latent_frames)):
        walk.begin(first=state == 0)
        _decode_piece(walk, vae, _Piece(vae.z_dim, 1, latent_height, latent_width))
    return Work(walk.arena.peak, walk.carried)


def _decode_piece(walk: _Walk, vae: VaeShape, piece: _Piece) -> None:
    arena = walk.arena
    dims = [vae.decoder_base_dim * factor for factor in (vae.dim_mult[-1], *reversed(vae.dim_mult))]
    upwards = tuple(reversed(vae.temperal_downsample))
    arena.take(walk.bytes(piece))
    source = walk.bytes(piece)
    piece = walk.causal(piece, dims[0], (3, 3, 3))
    arena.give(source)
    piece = walk.residual(piece, dims[0])
    piece = walk.attention(piece)
    piece = walk.residual(piece, dims[0])
    for index, channels in enumerate(dims[1:]):
        last = index == len(dims) - 2
        # The decoder holds what it gave the block, and a residual block a copy of it besides.
        entered = arena.take(walk.bytes(piece) * (2 if vae.is_residual else 1))
        for _ in range(vae.num_res_blocks + 1):
            piece = walk.residual(piece, channels)
        if not last:
            piece = walk.upsample(piece, channels if vae.is_residual else channels // 2, in_time=upwards[index])
            if vae.is_residual:
                size = walk.bytes(piece)
                with arena.holding(size, size):  # repeated, and in another order; then added
                    pass
        arena.give(entered)
    walk.norm(piece)
    arena.give(walk.bytes(piece))
    made_piece = walk.causal(piece, vae.out_channels, (3, 3, 3))
    arena.give(walk.bytes(piece))
    size = walk.bytes(made_piece)
    if vae.patch_size > 1:
        with arena.holding(size):
            pass
    # Handed out, and its uint8 in the ring is not torch's.
    with arena.holding(size):
        pass
    arena.give(size)


@functools.lru_cache(maxsize=512)  # many ways to run share a size
def encode_work(vae: VaeShape, num_frames: int, height: int, width: int, itemsize: int, threads: int = 1) -> Work:
    """Return what encoding `num_frames` pictures of (height, width) takes; they themselves do not count."""
    walk = _Walk(itemsize, threads)
    states = min(_STATES, 1 + (num_frames - 1) // vae.scale_factor_temporal)
    for state in range(states):
        walk.begin(first=state == 0)
        frames = 1 if state == 0 else vae.scale_factor_temporal
        _encode_piece(walk, vae, _Piece(vae.in_channels, frames, height // vae.patch_size, width // vae.patch_size))
    return Work(walk.arena.peak, walk.carried)


def _encode_piece(walk: _Walk, vae: VaeShape, piece: _Piece) -> None:
    arena = walk.arena
    dims = [vae.base_dim * factor for factor in (1, *vae.dim_mult)]
    piece = walk.causal(piece, dims[0], (3, 3, 3))
    for index, channels in enumerate(dims[1:]):
        last = index == len(dims) - 2
        copies = arena.take(walk.bytes(piece) * 2) if vae.is_residual else 0
        for _ in range(vae.num_res_blocks):
            piece = walk.residual(piece, channels)
        if not last:
            piece = walk.downsample(piece, in_time=vae.temperal_downsample[index])
        arena.give(copies)
    piece = walk.residual(piece, piece.channels)
    piece = walk.attention(piece)
    piece = walk.residual(piece, piece.channels)
    walk.norm(piece)
    arena.give(walk.bytes(piece))
    made = walk.causal(piece, 2 * vae.z_dim, (3, 3, 3))
    arena.give(walk.bytes(piece), walk.bytes(made))


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Heights and widths of a frame's tiles, in pixels; those at the edges are smaller."""

    heights: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.heights) * len(self.widths)

    @property
    def pixels(self) -> int:
        """Pixels of all tiles together, overlaps counted twice."""
        return sum(self.heights) * sum(self.widths)

    @property
    def two_rows(self) -> int:
        """Pixels of the two largest rows of tiles, or of the one that there is."""
        return sum(sorted(self.heights)[-2:]) * sum(self.widths)

    @property
    def largest(self) -> tuple[int, int]:
        return max(self.heights), max(self.widths)


def tiles_of(height: int, width: int, size: int, stride: int) -> Tiles:
    """Cut a frame as AutoencoderKLWan.tiled_decode does."""

    def cut(side: int) -> tuple[int, ...]:
        return tuple(min(size, side - start) for start in range(0, side, stride))

    return Tiles(cut(height), cut(width))
