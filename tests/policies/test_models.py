"""Tables of facts and answers: what is loaded, with which classes, and what is refused and why."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from wan_compat.policies.facts import FileFact, ModelFacts, TensorFact, WeightFile
from wan_compat.policies.models import decide_model
from wan_compat.protocol import errors

FILES = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "README.md",
    "pipeline.py",
    "transformer/extra.bin",
]
INDEX = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.35.0",
    "boundary_ratio": None,
    "expand_timesteps": False,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
CONFIGS = {
    "transformer": {"in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2]},
    "vae": {"z_dim": 16},
    "text_encoder": {"d_model": 4096},
    "tokenizer": {},
    "scheduler": {},
}


def file(path: str) -> FileFact:
    return FileFact(path, f"/models/m/{path}", 100, 1, 2, 3)


def facts(files=FILES, index=INDEX, configs=CONFIGS, tensors=None) -> ModelFacts:
    parameters = {"w": TensorFact("BF16", (1000, 1000), 2_000_000)}
    return ModelFacts(
        root="/models/m",
        files={path: file(path) for path in files},
        documents={"model_index.json": copy.deepcopy(index)}
        | {f"{name}/config.json": copy.deepcopy(config) for name, config in configs.items()},
        weights={
            f"{name}/w.safetensors": WeightFile(f"{name}/w.safetensors", "safetensors", given, {}, 100)
            for name, given in (tensors or dict.fromkeys(("transformer", "vae", "text_encoder"), parameters)).items()
        },
    )


def decide(given: ModelFacts, limit: int = 8 << 30):
    return decide_model(given, threads=2, memory_limit_bytes=limit)


def test_every_component_gets_an_explicit_class_and_nothing_else_is_admitted():
    decision = decide(facts())
    assert {c.name: c.class_name for c in decision.pipeline.components} == {
        "scheduler": "UniPCMultistepScheduler",
        "text_encoder": "UMT5EncoderModel",
        "tokenizer": "T5TokenizerFast",
        "transformer": "WanTransformer3DModel",
        "vae": "AutoencoderKLWan",
    }
    admitted = {fact.path for fact in decision.admitted}
    assert admitted == set(FILES) - {"README.md", "pipeline.py", "transformer/extra.bin"}
    assert decision.weight_bytes == 3 * 1_000_000 * 4
    assert decision.size_multiple == 16 and decision.frame_multiple == 4
    assert decision.reasons


def test_two_experts_keep_their_boundary():
    index = INDEX | {"boundary_ratio": 0.875, "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    files = [*FILES, "transformer_2/config.json", "transformer_2/diffusion_pytorch_model.safetensors"]
    decision = decide(facts(files, index, CONFIGS | {"transformer_2": CONFIGS["transformer"]}))
    assert decision.pipeline.boundary_ratio == 0.875


def test_five_billion_layout_needs_multiples_of_32():
    configs = CONFIGS | {
        "transformer": {"in_channels": 48, "out_channels": 48, "patch_size": [1, 2, 2]},
        "vae": {"z_dim": 48, "scale_factor_spatial": 16, "scale_factor_temporal": 4},
    }
    assert decide(facts(configs=configs)).size_multiple == 32


def test_precision_is_lowered_only_to_fit_at_all():
    def dtypes(limit):
        return {c.dtype for c in decide(facts(), limit).pipeline.components if c.dtype}

    assert dtypes(1 << 30) == {"float32"}
    assert dtypes(10_000_000) == {"bfloat16"}
    assert dtypes(5_000_000) == {"bfloat16"}  # whether any plan fits, policies/planning says


def without(*paths):
    return [path for path in FILES if path not in paths]


REFUSALS = {
    "pipeline of its own": ({"index": INDEX | {"_class_name": ["pipeline", "MyPipeline"]}}, errors.RemoteCodeRefused),
    "foreign library": ({"index": INDEX | {"transformer": ["mymodel", "WanTransformer3DModel"]}}, errors.RemoteCodeRefused),
    "auto_map": ({"configs": CONFIGS | {"transformer": {"auto_map": {"AutoModel": "m.M"}}}}, errors.RemoteCodeRefused),
    "trust in a config": ({"configs": CONFIGS | {"vae": {"trust_remote_code": True}}}, errors.RemoteCodeRefused),
    "kernel named in a config": (
        {"configs": CONFIGS | {"text_encoder": {"_attn_implementation_internal": "evil/kernel"}}},
        errors.RemoteCodeRefused,
    ),
    "tokenizer with code": ({"configs": CONFIGS | {"tokenizer": {"auto_map": {"AutoTokenizer": ["t.T", None]}}}}, errors.RemoteCodeRefused),
    "weights only as pickle": (
        {"files": [*without("vae/diffusion_pytorch_model.safetensors"), "vae/diffusion_pytorch_model.bin"]},
        errors.PickleRefused,
    ),
    "no weights": ({"files": without("vae/diffusion_pytorch_model.safetensors")}, errors.ModelCorrupt),
    "no config": ({"configs": {k: v for k, v in CONFIGS.items() if k != "vae"}}, errors.ModelCorrupt),
    "no tokenizer file": ({"files": without("tokenizer/tokenizer.json")}, errors.ModelCorrupt),
    "no scheduler config": ({"files": without("scheduler/scheduler_config.json")}, errors.ModelCorrupt),
    "no vae in the index": ({"index": {k: v for k, v in INDEX.items() if k != "vae"}}, errors.ModelCorrupt),
    "no class name": ({"index": {k: v for k, v in INDEX.items() if k != "_class_name"}}, errors.ModelCorrupt),
    "class name is a number": ({"index": INDEX | {"_class_name": 5}}, errors.ModelCorrupt),
    "stable diffusion": ({"index": INDEX | {"_class_name": "StableDiffusionPipeline"}}, errors.ModelNotCompatible),
    "modular pipeline": ({"index": INDEX | {"_class_name": "WanModularPipeline"}}, errors.ModelNotCompatible),
    "another program's sampler": ({"index": INDEX | {"_class_name": "WanDMDPipeline"}}, errors.ModelNotCompatible),
    "unknown component": ({"index": INDEX | {"unet": ["diffusers", "UNet2DConditionModel"]}}, errors.ModelNotCompatible),
    "unknown class": ({"index": INDEX | {"vae": ["diffusers", "AutoencoderKL"]}}, errors.ModelNotCompatible),
    "class of another library": ({"index": INDEX | {"vae": ["transformers", "AutoencoderKLWan"]}}, errors.ModelNotCompatible),
    "channels of no pipeline": (
        {"configs": CONFIGS | {"transformer": {"in_channels": 52, "out_channels": 16}}},
        errors.ModelNotCompatible,
    ),
    "picture channels for another vae": (
        {"configs": CONFIGS | {"transformer": {"in_channels": 36, "out_channels": 16}, "vae": {"z_dim": 16, "scale_factor_temporal": 8}}},
        errors.ModelInvalid,
    ),
    "pictures through a CLIP that is not there": (
        {"configs": CONFIGS | {"transformer": {"in_channels": 36, "out_channels": 16, "image_dim": 1280}}},
        errors.ModelCorrupt,
    ),
    "low-noise expert alone, with steps for the other": (
        {
            "index": INDEX | {"transformer": [None, None], "transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.9},
            "configs": CONFIGS | {"transformer_2": CONFIGS["transformer"]},
        },
        errors.ModelCorrupt,
    ),
    "control channels of another vae": (
        {
            "index": INDEX | {"_class_name": "WanVACEPipeline", "transformer": ["diffusers", "WanVACETransformer3DModel"]},
            "configs": CONFIGS | {"transformer": {"in_channels": 16, "out_channels": 16, "vace_in_channels": 128}},
        },
        errors.ModelInvalid,
    ),
    "vae of another model": ({"configs": CONFIGS | {"vae": {"z_dim": 48}}}, errors.ModelInvalid),
    "channels as text": ({"configs": CONFIGS | {"transformer": {"in_channels": "16"}}}, errors.ModelCorrupt),
    "channels as bool": ({"configs": CONFIGS | {"transformer": {"in_channels": True}}}, errors.ModelCorrupt),
    "patch of nothing": ({"configs": CONFIGS | {"transformer": {"patch_size": [1, 0, 2]}}}, errors.ModelCorrupt),
    "patch as text": ({"configs": CONFIGS | {"transformer": {"patch_size": "122"}}}, errors.ModelCorrupt),
    "boundary without second expert": ({"index": INDEX | {"boundary_ratio": 0.9}}, errors.ModelInvalid),
    "boundary out of range": ({"index": INDEX | {"boundary_ratio": 7}}, errors.ModelCorrupt),
    "boundary as text": ({"index": INDEX | {"boundary_ratio": "0.9"}}, errors.ModelCorrupt),
    "second expert without boundary": (
        {
            "index": INDEX | {"transformer_2": ["diffusers", "WanTransformer3DModel"]},
            "configs": CONFIGS | {"transformer_2": CONFIGS["transformer"]},
        },
        errors.ModelInvalid,
    ),
    "experts that differ": (
        {
            "index": INDEX | {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.9},
            "configs": CONFIGS | {"transformer_2": {"in_channels": 36, "out_channels": 16}},
        },
        errors.ModelInvalid,
    ),
    "missing shard": (
        {
            "files": [
                *without("transformer/diffusion_pytorch_model.safetensors"),
                "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
                "transformer/diffusion_pytorch_model.safetensors.index.json",
            ]
        },
        errors.ModelCorrupt,
    ),
    "claims a million shards": (
        {"files": [*FILES, "transformer/diffusion_pytorch_model-00001-of-99999.safetensors"]},
        errors.ModelCorrupt,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_names_its_cause(case):
    changes, kind = REFUSALS[case]
    with pytest.raises(kind) as caught:
        decide(facts(**changes))
    assert type(caught.value) is kind
    assert (
        "/models/m" in caught.value.message or ".json" in caught.value.message or ".safetensors" in caught.value.message
    )


def test_decision_is_pure_data():
    assert dataclasses.is_dataclass(decide(facts()))
    assert decide(facts()) == decide(facts())
