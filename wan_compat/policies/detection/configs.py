"""What a component is, from its config.json alone, whatever is missing or malformed in it.

Three spellings describe the same transformer: diffusers' (`num_attention_heads`, `in_channels`), the original's
(`dim`, `num_heads`, `in_dim`, `model_type`), and VideoX-Fun's, which puts the original's fields under diffusers' class
name: diffusers ignores them and silently builds 40 heads of 128 instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from wan_compat.policies.detection.classes import Role, family_of_class, role_of_class

MAX_SIDE = 1 << 24  # no width, count of layers or of channels comes near
_MAX_FIELDS = 400  # of one configuration, looked at for what they tell; the largest has 60

_ORIGINAL_FIELDS = ("dim", "in_dim", "num_heads", "out_dim")

# What diffusers 0.42.1 builds where a field is absent (signatures of models/transformers/transformer_*.py).
_WAN_DEFAULTS = {
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "ffn_dim": 13824,
    "num_layers": 40,
}
_CLASS_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "WanTransformer3DModel": _WAN_DEFAULTS,
    "WanVACETransformer3DModel": _WAN_DEFAULTS,
    "ChronoEditTransformer3DModel": _WAN_DEFAULTS,
    "AnyFlowTransformer3DModel": _WAN_DEFAULTS,
    "AnyFlowFARTransformer3DModel": _WAN_DEFAULTS,
    "HeliosTransformer3DModel": _WAN_DEFAULTS,
    "WanAnimateTransformer3DModel": {**_WAN_DEFAULTS, "in_channels": 36, "image_dim": 1280},
    "SkyReelsV2Transformer3DModel": {
        **_WAN_DEFAULTS,
        "num_attention_heads": 16,
        "ffn_dim": 8192,
        "num_layers": 32,
    },
    "WanAnimate2Transformer3DModel": {
        "dim": 5120,
        "num_heads": 40,
        "in_dim": 36,
        "out_dim": 16,
        "text_dim": 4096,
        "ffn_dim": 13824,
        "num_layers": 40,
    },
}
_VAE_DEFAULTS = {"z_dim": 16, "base_dim": 96, "in_channels": 3}  # AutoencoderKLWan

# Fields of a class other than the plain transformer -> the feature that they mean.
_FEATURE_FIELDS: Mapping[str, str] = {
    "vace_layers": "vace",
    "vace_in_channels": "vace",
    "vace_in_dim": "vace",
    "use_face_encoder": "animate",
    "motion_encoder_dim": "animate",
    "inject_face_latents_blocks": "animate",
    "audio_inject_layers": "s2v",
    "enable_framepack": "s2v",
    "num_audio_token": "s2v",
    "audio_window": "audio",
    "add_control_adapter": "camera",
    "in_dim_control_adapter": "camera",
    "has_ref_conv": "ref_conv",
    "add_ref_conv": "ref_conv",
    "in_dim_ref_conv": "ref_conv",
    "action_dim": "action",
    "inject_sample_info": "fps",
    "pos_embed_seq_len": "pos_embed",
    "image_dim": "image_embedder",
    "add_img_emb": "image_embedder",
    "use_img_emb": "image_embedder",
    "deltatime_type": "delta",
    "full_chunk_limit": "far",
    "has_multi_term_memory_patch": "helios",
}
_MODEL_TYPES: Mapping[str, str] = {"vace": "vace", "s2v": "s2v", "animate": "animate", "flf2v": "pos_embed"}


@dataclasses.dataclass(frozen=True)
class ConfigTraits:
    """What a configuration tells. Sizes are None where it does not say.

    `assumed` names fields that were absent and stand as the class would fill them; `invalid` holds fields whose value
    cannot be meant (their text, for a message). `style` is the spelling; `foreign_fields` are the original's fields
    under a class name of diffusers, which ignores them. `silent` names features that the configuration denies.
    `has_wan_fields`: fields that no other family has together, under whatever class name.
    """

    role: Role
    class_name: str | None
    style: Literal["diffusers", "original", "transformers"]
    dim: int | None = None
    in_channels: int | None = None
    out_channels: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    ffn_dim: int | None = None
    text_dim: int | None = None
    image_dim: int | None = None
    vace_layers: int | None = None
    z_dim: int | None = None
    base_dim: int | None = None
    model_type: str | None = None
    features: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    assumed: frozenset[str] = frozenset()
    invalid: Mapping[str, str] = dataclasses.field(default_factory=dict)
    foreign_fields: tuple[str, ...] = ()
    has_wan_fields: bool = False
    has_code: bool = False


def read_config(config: Mapping[str, Any], index_class: str | None = None) -> ConfigTraits:
    """Return what a configuration says; `index_class` is what model_index.json calls the component."""
    own = class_of(config)
    # The configuration's class was written together with its fields, the index may be put together by hand.
    class_name = own if role_of_class(own) is not None or index_class is None else index_class
    role = role_of_class(class_name) or _role_of_fields(config)
    has_code = bool(config.get("auto_map"))
    if role == "denoiser" and family_of_class(class_name) in ("wan", None):
        return _read_transformer(config, class_name, has_code)
    if role == "vae":
        reader = _Reader(config, _VAE_DEFAULTS if class_name == "AutoencoderKLWan" else {})
        return ConfigTraits(
            "vae",
            class_name,
            "diffusers",
            z_dim=reader.whole("z_dim", "latent_channels"),
            base_dim=reader.whole("base_dim"),
            in_channels=reader.whole("in_channels"),
            assumed=frozenset(reader.assumed),
            invalid=reader.invalid,
            has_code=has_code,
        )
    reader = _Reader(config, {})
    style: Literal["diffusers", "transformers"] = "diffusers" if "_class_name" in config else "transformers"
    return ConfigTraits(
        role or "other",
        class_name,
        style,
        dim=reader.whole("d_model", "hidden_size"),
        num_layers=reader.whole("num_layers", "num_hidden_layers"),
        text_dim=reader.whole("d_model", "hidden_size") if role == "text_encoder" else None,
        model_type=text_of(config.get("model_type")),
        invalid=reader.invalid,
        has_code=has_code,
    )


def class_of(config: Mapping[str, Any]) -> str | None:
    """Return the class that a configuration names: diffusers' `_class_name`, or transformers' first architecture."""
    name = config.get("_class_name")
    if isinstance(name, list | tuple):  # [module, class] of remote code
        name = name[-1] if name else None
    if text_of(name) is None:
        architectures = config.get("architectures")
        name = architectures[0] if isinstance(architectures, list | tuple) and architectures else None
    return text_of(name)


def text_of(value: Any) -> str | None:
    """Return a non-empty text of sensible length, None for everything else."""
    return value if isinstance(value, str) and 0 < len(value) <= 300 else None


def whole(value: Any) -> int | None:
    """Return a value as the whole number that it means, None if it means none. `"16"` and 16.0 mean 16."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 8:
        value = int(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE:
        return value
    return None


class _Reader:
    """Reads numbers out of a configuration and keeps what was absent and what was wrong."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, int]) -> None:
        self._config = config
        self._defaults = defaults
        self.assumed: set[str] = set()
        self.invalid: dict[str, str] = {}

    def whole(self, *names: str) -> int | None:
        """Return the first of the fields that has a sensible number, else the class default of an absent one."""
        for name in names:
            raw = self._config.get(name)
            if raw is None:
                continue
            value = whole(raw)
            if value is None or not isinstance(raw, int) or isinstance(raw, bool):
                self.invalid[name] = _shown(raw)
            if value is not None:
                return value
        for name in names:
            if name in self._defaults and name not in self._config:
                self.assumed.add(name)
                return self._defaults[name]
        return None


def _shown(value: Any) -> str:
    """Return a value for a message: never the whole of a large one."""
    if isinstance(value, list | tuple | Mapping):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a huge number"
    return repr(value[:80] if isinstance(value, str) else value)


def _read_transformer(config: Mapping[str, Any], class_name: str | None, has_code: bool) -> ConfigTraits:
    original = _is_original(config, class_name)
    defaults: Mapping[str, int] = {} if original else _CLASS_DEFAULTS.get(class_name or "", {})
    if class_name == "WanAnimate2Transformer3DModel":
        defaults = _CLASS_DEFAULTS[class_name]
    reader = _Reader(config, defaults)
    heads = reader.whole("num_attention_heads", "num_heads")
    if original or class_name == "WanAnimate2Transformer3DModel":
        dim = reader.whole("dim", "hidden_size")
        channels = reader.whole("in_dim", "in_channels"), reader.whole("out_dim", "out_channels")
    else:
        width = reader.whole("attention_head_dim")
        dim = heads * width if heads and width else None
        channels = reader.whole("in_channels", "in_dim"), reader.whole("out_channels", "out_dim")
    image_dim = reader.whole("image_dim")
    features, silent = _features(config, original)
    model_type = text_of(config.get("model_type"))
    if model_type is not None and model_type in _MODEL_TYPES:
        features.add(_MODEL_TYPES[model_type])
    if model_type in ("t2v", "i2v", "ti2v"):
        silent.add("pos_embed")
    if image_dim is not None:
        features.add("image_embedder")
    diffusers_class = class_name in _CLASS_DEFAULTS and class_name != "WanAnimate2Transformer3DModel"
    layers = config.get("vace_layers")
    return ConfigTraits(
        "denoiser",
        class_name,
        "original" if original else "diffusers",
        dim=dim,
        in_channels=channels[0],
        out_channels=channels[1],
        num_layers=reader.whole("num_layers"),
        num_heads=heads,
        ffn_dim=reader.whole("ffn_dim"),
        text_dim=reader.whole("text_dim"),
        image_dim=image_dim,
        vace_layers=len(layers) if isinstance(layers, list | tuple) and layers else None,
        model_type=model_type,
        features=frozenset(features),
        silent=frozenset(silent - features),
        assumed=frozenset(reader.assumed),
        invalid=reader.invalid,
        foreign_fields=tuple(name for name in (*_ORIGINAL_FIELDS, "model_type") if name in config)
        if original and diffusers_class
        else (),
        has_wan_fields={"freq_dim", "ffn_dim"} <= config.keys(),
        has_code=has_code,
    )


def _features(config: Mapping[str, Any], original: bool) -> tuple[set[str], set[str]]:
    """Return the features that the fields claim, and those that a diffusers configuration denies by null or False."""
    features, silent = set(), set()
    for name, feature in _FEATURE_FIELDS.items():
        if name not in config:
            continue
        value = config[name]
        if value is None or value is False or value == 0 or value == []:
            silent.add(feature)
        else:
            features.add(feature)
    if not original:
        # diffusers saves every field of a class: one that is absent was not there to be set.
        silent |= {"pos_embed", "image_embedder"} - features
    return features, silent


def _is_original(config: Mapping[str, Any], class_name: str | None) -> bool:
    if class_name == "WanAnimate2Transformer3DModel" or "num_attention_heads" in config:
        return False
    return any(whole(config.get(name)) is not None for name in _ORIGINAL_FIELDS)


def _role_of_fields(config: Mapping[str, Any]) -> Role | None:
    """Return the role of a configuration whose class says nothing."""
    if len(config) > _MAX_FIELDS:
        return None
    if {"num_heads", "ffn_dim"} <= config.keys() and {"dim", "in_dim"} & config.keys():
        return "denoiser"
    if {"num_attention_heads", "attention_head_dim", "ffn_dim"} <= config.keys() and "patch_size" in config:
        return "denoiser"
    if {"temperal_downsample", "z_dim"} <= config.keys():
        return "vae"
    if {"block_out_channels", "latent_channels"} <= config.keys():
        return "vae"
    if config.get("model_type") in ("umt5", "t5", "mt5"):
        return "text_encoder"
    if config.get("model_type") == "clip_vision_model":
        return "image_encoder"
    return None
