"""Decoding in tiles, one latent frame at a time: bit for bit what diffusers' `tiled_decode` makes of a whole clip.

Diffusers decodes each tile through all frames, keeps all of them, and blends neighbours at the end. Blending looks at
one frame at a time, so it can be done as soon as every tile has that frame. The price: the causal features of all tiles
are held at once, which is what a decode without tiles holds; what tiles save is the work space of the widest layers.

Proved at load, like streaming itself (streaming.py).
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

# Tiles for the proof, in latent pixels: two in each direction, the second one smaller, and they overlap.
_PROOF_SIDE, _PROOF_TILE, _PROOF_STRIDE = 6, 4, 3


def would_tile(vae: Any, z: torch.Tensor) -> bool:
    """Return whether diffusers would decode these latents in tiles."""
    if not getattr(vae, "use_tiling", False):  # a VAE of a repository's own
        return False
    ratio = vae.spatial_compression_ratio
    return bool(z.shape[-2] > vae.tile_sample_min_height // ratio or z.shape[-1] > vae.tile_sample_min_width // ratio)


def decode_tiled_pieces(vae: Any, z: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield (1, 3, frames, height, width), not clamped: 1 frame for the first latent frame, 4 for each other.

    The arithmetic of tiles and overlaps is that of AutoencoderKLWan.tiled_decode, line for line.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    ratio, patch = vae.spatial_compression_ratio, vae.config.patch_size or 1
    height, width = z.shape[-2:]
    tile_height, tile_width = vae.tile_sample_min_height // ratio, vae.tile_sample_min_width // ratio
    rows = range(0, height, vae.tile_sample_stride_height // ratio)
    columns = range(0, width, vae.tile_sample_stride_width // ratio)
    stride_height, stride_width = vae.tile_sample_stride_height // patch, vae.tile_sample_stride_width // patch
    blend_height = vae.tile_sample_min_height // patch - stride_height
    blend_width = vae.tile_sample_min_width // patch - stride_width
    vae.clear_cache()
    features = {(i, j): [None] * vae._conv_num for i in rows for j in columns}
    for index in range(z.shape[2]):
        above: list[torch.Tensor] = []
        finished = []
        for i in rows:
            row: list[torch.Tensor] = []
            strips = []
            for position, j in enumerate(columns):
                tile = vae.post_quant_conv(z[:, :, index : index + 1, i : i + tile_height, j : j + tile_width])
                tile = vae.decoder(tile, feat_cache=features[i, j], feat_idx=[0], first_chunk=index == 0)
                # In place, as in diffusers: the next row and column blend with what was blended.
                if above:
                    tile = vae.blend_v(above[position], tile, blend_height)
                if row:
                    tile = vae.blend_h(row[-1], tile, blend_width)
                row.append(tile)
                strips.append(tile[:, :, :, :stride_height, :stride_width])
            above = row
            finished.append(torch.cat(strips, dim=-1))
        piece = torch.cat(finished, dim=3)[:, :, :, : height * ratio // patch, : width * ratio // patch]
        yield piece if vae.config.patch_size is None else unpatchify(piece, patch_size=patch)


@contextlib.contextmanager
def small_tiles(vae: Any) -> Iterator[int]:
    """Make the tiles of `vae` small for a moment; gives the side, in latent pixels, of a clip that needs several."""
    names = [f"tile_sample_{what}_{side}" for what in ("min", "stride") for side in ("height", "width")]
    before = {name: getattr(vae, name) for name in names}
    for name in names:
        latent = _PROOF_TILE if "min" in name else _PROOF_STRIDE
        setattr(vae, name, latent * vae.spatial_compression_ratio)
    try:
        yield _PROOF_SIDE
    finally:
        for name, value in before.items():
            setattr(vae, name, value)
