"""The four learnt parts, in the classes that WanPipeline loads; sizes, and how they start.

All random numbers come from torch's global generator: seed it first.
"""

from __future__ import annotations

import math

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from tools.demo_model.captions import vocabulary
from tools.demo_model.fields import CHANNELS

CONTEXT = 24  # text tokens that a training sees; the pipeline pads to 512
PIPELINE_CONTEXT = 512
_TEXT_DIM, _HEADS, _HEAD_DIM, _LAYERS = 64, 6, 32, 6


def make_vae() -> AutoencoderKLWan:
    """Wan 2.2's layout with its shortcuts, folding 4x4 pixels first: 16x in space, 4x in time, 16 channels."""
    vae = AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=32,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        is_residual=True,
        in_channels=48,
        out_channels=48,
        patch_size=4,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    )
    _silence_branches(vae)
    return vae


def _silence_branches(vae: AutoencoderKLWan) -> None:
    # Every residual branch starts at zero: what the shortcuts carry is right from the first step, and grows details.
    with torch.no_grad():
        for module in vae.modules():
            match type(module).__name__:
                case "WanResidualBlock":
                    last = module.conv2
                case "WanAttentionBlock":
                    last = module.proj
                case "WanResample" if len(module.resample) > 1:
                    last = module.resample[1]
                case _:
                    continue
            last.weight.zero_()
            last.bias.zero_()


def make_transformer() -> WanTransformer3DModel:
    """Wan's transformer, 3.3 million parameters, with heads that see their neighbours and words that are heard."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=_HEADS,
        attention_head_dim=_HEAD_DIM,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=_TEXT_DIM,
        freq_dim=128,
        ffn_dim=512,
        num_layers=_LAYERS,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )
    with torch.no_grad():
        for block in transformer.blocks[:2]:
            _look_at_neighbours(block.attn1, transformer.rope)
        for block in transformer.blocks:
            # A short prompt is padded to 512 tokens with zeros. With plain norms a word cannot outweigh so many; these
            # let its key reach a score of 36, and the padding, without a bias, stays at 0.
            block.attn2.norm_q.weight.fill_(2.5)
            block.attn2.norm_k.weight.fill_(2.5)
            block.attn2.to_k.bias.zero_()
            block.attn2.to_v.bias.zero_()
        for layer in (
            transformer.condition_embedder.text_embedder.linear_1,
            transformer.condition_embedder.text_embedder.linear_2,
        ):
            layer.bias.zero_()
    return transformer


def _look_at_neighbours(attention: torch.nn.Module, rope: torch.nn.Module) -> None:
    """Let one head each look at the token before, after, above, below, left and right.

    Positions enter this network only as rotations between queries and keys, and a clip starts as noise that looks alike
    everywhere. So where the picture ends can be found in one way only: by a neighbour that is missing. With constant
    queries and keys whose angles differ by one position, six heads do that from the start. An earlier model without
    them never learnt to move left.
    """
    starts = {"t": 0, "h": rope.t_dim, "w": rope.t_dim + rope.h_dim}
    sizes = {"t": rope.t_dim, "h": rope.h_dim, "w": rope.w_dim}
    looks = [("t", -1), ("t", 1), ("h", -1), ("h", 1), ("w", -1), ("w", 1)]
    query, key = torch.zeros(_HEADS, _HEAD_DIM), torch.zeros(_HEADS, _HEAD_DIM)
    for head, (axis, step) in enumerate(looks):
        for name, start in starts.items():
            # Two speeds in time: with one alone, a token 2 pi away would look like a neighbour.
            for pair in range(2 if name == "t" else 1):
                speed = 10000 ** (-2 * pair / sizes[name])
                angle = -speed * step if name == axis else 0.0
                query[head, start + 2 * pair] = 1.0
                key[head, start + 2 * pair] = math.cos(angle)
                key[head, start + 2 * pair + 1] = math.sin(angle)
    for layer, bias in ((attention.to_q, query), (attention.to_k, key)):
        layer.weight.mul_(0.1)
        layer.bias.copy_(bias.flatten())
    attention.norm_q.weight.fill_(2.5)
    attention.norm_k.weight.fill_(2.5)


class TrainingAttention:
    """Wan's attention written out, for training; the same numbers as WanAttnProcessor and scaled_dot_product_attention.

    Two things are gained: on a CPU the backward pass of the fused kernel takes five times as long as these products, and
    the padding of a prompt (512 tokens in the pipeline) shrinks to one zero token with the weight of them all. That one
    must be the last.
    """

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):  # type: ignore[no-untyped-def]
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(source))
        query, key, value = (part.unflatten(2, (attn.heads, -1)) for part in (query, key, attn.to_v(source)))
        if rotary_emb is not None:
            query, key = (_rotate(part, *rotary_emb) for part in (query, key))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        scores = (query @ key.transpose(2, 3)).float() / math.sqrt(query.shape[-1])
        if encoder_hidden_states is not None:
            last = torch.arange(scores.shape[-1], device=scores.device) == scores.shape[-1] - 1
            scores = scores + last * math.log(PIPELINE_CONTEXT - CONTEXT)
        heard = scores.softmax(-1).to(value.dtype) @ value
        return attn.to_out[0](heard.transpose(1, 2).flatten(2))


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def make_text_encoder(vocabulary_size: int) -> UMT5EncoderModel:
    """Two layers of Wan's text encoder: enough to tell "the blue ocean" from "a blue ball"."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary_size,
            d_model=_TEXT_DIM,
            d_kv=_TEXT_DIM // 4,
            d_ff=2 * _TEXT_DIM,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            is_encoder_decoder=False,
            use_cache=False,
            tie_word_embeddings=False,
        )
    )


def make_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer whose pieces are the grammar's words; unknown words fall apart into letters."""
    words = vocabulary()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)] + [("▁" + word, -4.0) for word in words]
    pieces += [("▁" + word.capitalize(), -4.0) for word in words if word != "a"] + [("▁A", -4.0), ("▁", -8.0)]
    known = {piece for piece, _ in pieces}
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-"
    pieces += [(letter, -9.0) for letter in letters if letter not in known]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=PIPELINE_CONTEXT)


def tie_capitals(tokenizer: T5TokenizerFast, embeddings: torch.Tensor) -> None:
    """Give a capitalised word the embedding of its lower-case form; training sees only that one."""
    pieces = tokenizer.get_vocab()
    with torch.no_grad():
        for piece, index in pieces.items():
            if piece.startswith("▁") and len(piece) > 1 and piece[1].isupper():
                embeddings[index] = embeddings[pieces[piece.lower()]]
