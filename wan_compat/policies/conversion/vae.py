"""Wan's VAE: from the original's names to those of `AutoencoderKLWan`, and its configuration, from shapes alone.

Two forms of one network. Wan 2.1's blocks lie in one flat list, in which a `resample` ends a stage; Wan 2.2's has a
list of stages with a list of blocks in each, and works on 2x2 patches of pixels. Sources: wan/modules/vae.py and
vae2_2.py of Wan-Video, autoencoder_kl_wan.py and scripts/convert_wan_to_diffusers.py of diffusers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from wan_compat.policies.conversion.renames import Rename, Shape
from wan_compat.policies.facts import TensorFact
from wan_compat.protocol.errors import ModelInvalid

MAX_STAGES = 16
MAX_BLOCKS = 16

# What the latents of Wan 2.2's VAE are shifted and scaled by; those of 2.1 are the defaults of diffusers' class.
LATENTS_MEAN_22 = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
LATENTS_STD_22 = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip
LATENTS_21 = 16


@dataclasses.dataclass(frozen=True)
class VaeSizes:
    """`mults` are the widths of the stages in units of `base` and of `decoder_base`; `blocks` residual blocks each in
    the encoder, one more in the decoder; `temporal[i]` whether the i-th downsampling halves time too."""

    residual: bool
    base: int
    decoder_base: int
    z: int
    pixels: int
    blocks: int
    mults: tuple[int, ...]
    temporal: tuple[bool, ...]


def vae_of(tensors: Mapping[str, TensorFact]) -> tuple[dict[str, Any], tuple[Rename, ...]]:
    """Return the configuration and every tensor of the VAE that these tensors say they are.

    Raises:
        ModelInvalid: They are no VAE of Wan's by their sizes; names and other shapes are the caller's to compare.
    """
    sizes = _read_sizes(tensors)
    patched = sizes.pixels == 12
    if sizes.pixels not in (3, 12) or (sizes.z != LATENTS_21 and sizes.z != len(LATENTS_MEAN_22)):
        raise ModelInvalid(f"a VAE with {sizes.pixels} pixel channels and {sizes.z} latent channels is not Wan's")
    config: dict[str, Any] = {
        "_class_name": "AutoencoderKLWan",
        "base_dim": sizes.base,
        "decoder_base_dim": sizes.decoder_base if sizes.residual else None,
        "z_dim": sizes.z,
        "dim_mult": list(sizes.mults),
        "num_res_blocks": sizes.blocks,
        "attn_scales": [],
        "temperal_downsample": list(sizes.temporal),
        "dropout": 0.0,
        "is_residual": sizes.residual,
        "in_channels": sizes.pixels,
        "out_channels": sizes.pixels,
        "patch_size": 2 if patched else None,
        "scale_factor_temporal": 2 ** sum(sizes.temporal),
        "scale_factor_spatial": 2 ** (len(sizes.mults) - 1) * (2 if patched else 1),
    }
    if sizes.z == len(LATENTS_MEAN_22):
        config |= {"latents_mean": list(LATENTS_MEAN_22), "latents_std": list(LATENTS_STD_22)}
    return config, tuple(vae_renames(sizes))


def _read_sizes(tensors: Mapping[str, TensorFact]) -> VaeSizes:
    residual = any(name.startswith("encoder.downsamples.0.downsamples.") for name in tensors)
    base, pixels = _shape(tensors, "encoder.conv1.weight")[:2]
    z = _shape(tensors, "conv2.weight")[0]
    places = [_downsample_place(residual, stage, block) for stage in range(MAX_STAGES) for block in range(MAX_BLOCKS)]
    if not residual:
        places = [f"encoder.downsamples.{number}." for number in range(MAX_STAGES * MAX_BLOCKS)]
    widths: list[int] = []
    temporal: list[bool] = []
    counts = [0]
    for place in places:
        if f"{place}residual.2.weight" in tensors:
            if counts[-1] == 0:
                widths.append(_shape(tensors, f"{place}residual.2.weight")[0])
            counts[-1] += 1
        elif f"{place}resample.1.weight" in tensors:
            temporal.append(f"{place}time_conv.weight" in tensors)
            counts.append(0)
    mults = tuple(width // base for width in widths) if base else ()
    if not mults or len(set(counts)) != 1 or len(mults) != len(counts) or 0 in mults:
        raise ModelInvalid(f"the VAE's stages make no sense: widths {widths[:8]}, blocks {counts[:8]}, base {base}")
    decoder_base = _shape(tensors, "decoder.conv1.weight")[0] // mults[-1]
    return VaeSizes(residual, base, decoder_base, z, pixels, counts[0], mults, tuple(temporal))


def _downsample_place(residual: bool, stage: int, block: int) -> str:
    return f"encoder.downsamples.{stage}.downsamples.{block}." if residual else ""


def _shape(tensors: Mapping[str, TensorFact], name: str) -> Shape:
    tensor = tensors.get(name)
    if tensor is None or not tensor.shape:
        raise ModelInvalid(f"the VAE has no tensor {name!r}", hint="download the file again, and compare its checksum")
    return tensor.shape if len(tensor.shape) > 1 else (*tensor.shape, 0)


def vae_renames(sizes: VaeSizes) -> Iterator[Rename]:
    z = sizes.z
    yield from _pair("conv1", "quant_conv", (2 * z, 2 * z, 1, 1, 1))
    yield from _pair("conv2", "post_quant_conv", (z, z, 1, 1, 1))
    yield from _pair("encoder.conv1", "encoder.conv_in", (sizes.base, sizes.pixels, 3, 3, 3))
    yield from _encoder(sizes)
    top = sizes.base * sizes.mults[-1]
    yield from _middle("encoder", top)
    yield from _head("encoder", top, 2 * z)
    top = sizes.decoder_base * sizes.mults[-1]
    yield from _pair("decoder.conv1", "decoder.conv_in", (top, z, 3, 3, 3))
    yield from _middle("decoder", top)
    yield from _decoder(sizes)
    yield from _head("decoder", sizes.decoder_base * sizes.mults[0], sizes.pixels)


def _encoder(sizes: VaeSizes) -> Iterator[Rename]:
    width, flat = sizes.base, 0
    for stage, mult in enumerate(sizes.mults):
        out = sizes.base * mult
        for block in range(sizes.blocks + 1):
            if sizes.residual:
                old = f"encoder.downsamples.{stage}.downsamples.{block}"
                new = f"encoder.down_blocks.{stage}.resnets.{block}"
                sampler = f"encoder.down_blocks.{stage}.downsampler"
            else:
                old = f"encoder.downsamples.{flat}"
                new = sampler = f"encoder.down_blocks.{flat}"
            if block < sizes.blocks:
                yield from _residual(old, new, width, out)
                width = out
            elif stage < len(sizes.mults) - 1:
                yield from _pair(f"{old}.resample.1", f"{sampler}.resample.1", (out, out, 3, 3))
                if sizes.temporal[stage]:
                    yield from _pair(f"{old}.time_conv", f"{sampler}.time_conv", (out, out, 3, 1, 1))
            flat += 1


def _decoder(sizes: VaeSizes) -> Iterator[Rename]:
    width, flat = sizes.decoder_base * sizes.mults[-1], 0
    for stage, mult in enumerate(reversed(sizes.mults)):
        out = sizes.decoder_base * mult
        if stage and not sizes.residual:
            width //= 2  # the flat form's upsampling halves the width
        for block in range(sizes.blocks + 2):
            if sizes.residual:
                old = f"decoder.upsamples.{stage}.upsamples.{block}"
                sampler = f"decoder.up_blocks.{stage}.upsampler"
            else:
                old = f"decoder.upsamples.{flat}"
                sampler = f"decoder.up_blocks.{stage}.upsamplers.0"
            if block < sizes.blocks + 1:
                yield from _residual(old, f"decoder.up_blocks.{stage}.resnets.{block}", width, out)
                width = out
            elif stage < len(sizes.mults) - 1:
                narrow = out if sizes.residual else out // 2
                yield from _pair(f"{old}.resample.1", f"{sampler}.resample.1", (narrow, out, 3, 3))
                if sizes.temporal[-1 - stage]:
                    yield from _pair(f"{old}.time_conv", f"{sampler}.time_conv", (2 * out, out, 3, 1, 1))
            flat += 1


def _middle(half: str, width: int) -> Iterator[Rename]:
    yield from _residual(f"{half}.middle.0", f"{half}.mid_block.resnets.0", width, width)
    old, new = f"{half}.middle.1", f"{half}.mid_block.attentions.0"
    yield Rename(f"{old}.norm.gamma", (width, 1, 1), f"{new}.norm.gamma", (width, 1, 1))
    yield from _pair(f"{old}.to_qkv", f"{new}.to_qkv", (3 * width, width, 1, 1))
    yield from _pair(f"{old}.proj", f"{new}.proj", (width, width, 1, 1))
    yield from _residual(f"{half}.middle.2", f"{half}.mid_block.resnets.1", width, width)


def _head(half: str, width: int, out: int) -> Iterator[Rename]:
    yield from _gamma(f"{half}.head.0", f"{half}.norm_out", width)
    yield from _pair(f"{half}.head.2", f"{half}.conv_out", (out, width, 3, 3, 3))


def _residual(old: str, new: str, width: int, out: int) -> Iterator[Rename]:
    yield from _gamma(f"{old}.residual.0", f"{new}.norm1", width)
    yield from _pair(f"{old}.residual.2", f"{new}.conv1", (out, width, 3, 3, 3))
    yield from _gamma(f"{old}.residual.3", f"{new}.norm2", out)
    yield from _pair(f"{old}.residual.6", f"{new}.conv2", (out, out, 3, 3, 3))
    if width != out:
        yield from _pair(f"{old}.shortcut", f"{new}.conv_shortcut", (out, width, 1, 1, 1))


def _gamma(old: str, new: str, width: int) -> Iterator[Rename]:
    yield Rename(f"{old}.gamma", (width, 1, 1, 1), f"{new}.gamma", (width, 1, 1, 1))


def _pair(old: str, new: str, shape: Shape) -> Iterator[Rename]:
    yield Rename(f"{old}.weight", shape, f"{new}.weight", shape)
    yield Rename(f"{old}.bias", shape[:1], f"{new}.bias", shape[:1])
