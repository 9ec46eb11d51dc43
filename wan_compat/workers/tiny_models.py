"""Tiny Wan checkpoints with random weights, written in the official folder layout: `python -I -m ... KIND OUTDIR ...`.

They prove plumbing and nothing else: their clips are coloured noise that has nothing to do with the prompt. Tests use
them as models that build in a second, and the demo uses them to show every variant's path without a download.

    t2v      Wan 2.1 text to video            a14b   Wan 2.2 text to video, two experts
    ti2v     Wan 2.2 5B layout                vace   Wan 2.1 VACE
    i2v      Wan 2.1 image to video, CLIP     i2v22  Wan 2.2 image to video, two experts, no CLIP
    flf2v    Wan 2.1 first and last frame     vace22 Wan 2.2 VACE, two experts
    t2v_mid  t2v, large enough (102 MB) for timings to mean something

tiny_relatives.py has Animate and the relatives, tiny_modular.py the pipelines of modular blocks.

The same kind always gives the same bytes: weights from a fixed seed, and a vocabulary that is listed, not trained
(the trainer of `tokenizers` sums in the order of its threads). Repetition is on purpose where diffusers' own class
arguments are repeated: this file is read beside a model's config.json.
"""

# mypy: allow-untyped-calls
# The libraries declare themselves typed, and are so in part.

from __future__ import annotations

import sys
import warnings
from typing import Any

from wan_compat.workers import tiny_modular, tiny_relatives

_SENTENCES = (
    "a red ball bounces to the right on a blue background",
    "a green square slides up slowly",
    "the camera pans over a calm sea at sunset",
    "a yellow circle moves left and grows",
    "a cat walks through tall grass in the wind",
    "bright colours, overexposed, static, blurred details, subtitles",
)
_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-"

_TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 32,
    "freq_dim": 256,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 1024,
}
_VAE: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}
VAE_5B: dict[str, Any] = {
    "base_dim": 8,
    "decoder_base_dim": 8,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "scale_factor_temporal": 4,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
_TEXT_ENCODER: dict[str, Any] = {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 64}

_WAN_KINDS = ("t2v", "a14b", "ti2v", "i2v", "i2v22", "flf2v", "vace", "vace22", "t2v_mid")
KINDS = (*_WAN_KINDS, *tiny_relatives.KINDS, *tiny_modular.KINDS)


def build(kind: str, folder: str) -> None:
    """Write the checkpoint of `kind` into `folder`, which is created. Takes about ten seconds, most of it imports."""
    import torch

    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(KINDS)}")
    with warnings.catch_warnings():
        # Without torchvision, transformers says that it takes its PIL image processor; that is what we want.
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        if kind in tiny_modular.KINDS:
            tiny_modular.write_modular(kind, folder, _pipeline, _common)
        else:
            _pipeline(kind).save_pretrained(folder)


def _pipeline(kind: str) -> Any:
    import diffusers

    if kind in tiny_relatives.KINDS:
        return tiny_relatives.build_relative(kind, _common, _image_encoder)
    if kind == "t2v":
        return diffusers.WanPipeline(**_common(), transformer=_transformer())
    if kind == "a14b":
        experts = {"transformer": _transformer(), "transformer_2": _transformer()}
        return diffusers.WanPipeline(**_common(), **experts, boundary_ratio=0.875)
    if kind == "ti2v":
        transformer = _transformer(in_channels=48, out_channels=48)
        return diffusers.WanPipeline(**_common(vae=VAE_5B), transformer=transformer, expand_timesteps=True)
    if kind == "t2v_mid":
        text_encoder = {"d_model": 256, "num_layers": 4, "num_heads": 4, "d_ff": 512}
        common = _common(vae={**_VAE, "base_dim": 16, "dim_mult": [1, 2, 4, 4]}, text_encoder=text_encoder)
        sizes = {"num_attention_heads": 6, "attention_head_dim": 64, "text_dim": 256, "ffn_dim": 1536, "num_layers": 8}
        return diffusers.WanPipeline(**common, transformer=_transformer(**sizes))
    if kind == "i2v":
        transformer = _transformer(in_channels=36, image_dim=32, added_kv_proj_dim=24)
        return diffusers.WanImageToVideoPipeline(**_common(), **_image_encoder(), transformer=transformer)
    if kind == "flf2v":
        # Positions of two pictures' tokens: 4 patches and a class each.
        transformer = _transformer(in_channels=36, image_dim=32, added_kv_proj_dim=24, pos_embed_seq_len=10)
        return diffusers.WanImageToVideoPipeline(**_common(), **_image_encoder(), transformer=transformer)
    if kind == "i2v22":
        experts = {"transformer": _transformer(in_channels=36), "transformer_2": _transformer(in_channels=36)}
        no_clip = {"image_encoder": None, "image_processor": None}
        return diffusers.WanImageToVideoPipeline(**_common(), **no_clip, **experts, boundary_ratio=0.9)
    vace: dict[str, Any] = {**_TRANSFORMER, "num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 96}
    experts = {"transformer": diffusers.WanVACETransformer3DModel(**vace)}
    if kind == "vace22":
        experts["transformer_2"] = diffusers.WanVACETransformer3DModel(**vace)
        return diffusers.WanVACEPipeline(**_common(), **experts, boundary_ratio=0.875)
    return diffusers.WanVACEPipeline(**_common(), **experts)


def _common(vae: dict[str, Any] = _VAE, text_encoder: dict[str, Any] = _TEXT_ENCODER) -> dict[str, Any]:
    """Return the four parts that every Wan pipeline has besides its transformers."""
    import diffusers
    import transformers

    tokenizer = _tokenizer()
    config = transformers.UMT5Config(
        vocab_size=len(tokenizer),
        d_kv=text_encoder["d_model"] // text_encoder["num_heads"],
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        **{"tie_word_embeddings": False, **text_encoder},
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": transformers.UMT5EncoderModel(config).eval(),
        "vae": diffusers.AutoencoderKLWan(**vae),
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
    }


def _transformer(**changes: Any) -> Any:
    import diffusers

    return diffusers.WanTransformer3DModel(**{**_TRANSFORMER, **changes})


def _image_encoder() -> dict[str, Any]:
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=16,
        intermediate_size=37,
    )
    return {
        "image_encoder": transformers.CLIPVisionModel(config).eval(),
        "image_processor": transformers.CLIPImageProcessor(size=32, crop_size=32),
    }


def _tokenizer() -> Any:
    """Return a tokenizer of the kind that the official repositories have: Unigram, with `</s>` after every text."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = sorted({f"▁{word.strip(',')}" for sentence in _SENTENCES for word in sentence.split()})
    pieces = [*words, "▁", *_CHARACTERS]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -2.0 if len(piece) > 1 else -8.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)


if __name__ == "__main__":
    given = sys.argv[1:]
    if not given or len(given) % 2 or not set(given[::2]) <= set(KINDS):
        raise SystemExit(f"usage: python -I -m wan_compat.workers.tiny_models {{{','.join(KINDS)}}} OUTDIR ...")
    for kind, folder in zip(given[::2], given[1::2], strict=True):
        build(kind, folder)
