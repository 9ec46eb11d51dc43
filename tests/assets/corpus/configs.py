"""The JSON files beside the weights: indexes, schedulers, tokenizers, configurations of the original layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.assets.corpus.files import write_hole, write_json
from tests.assets.corpus.tables import recorded_config

UMT5_BF16_PTH_BYTES = 11_361_920_418
CLIP_PTH_BYTES = 4_772_359_047
VAE_PTH_BYTES = {"Wan2.1_VAE.pth": 507_609_880, "Wan2.2_VAE.pth": 2_818_839_170}


def scheduler_config(class_name: str, flow_shift: float | None, version: str) -> dict[str, Any]:
    """Return what diffusers writes for a scheduler; the fields that matter here are UniPC's."""
    config: dict[str, Any] = {"_class_name": class_name, "_diffusers_version": version, "num_train_timesteps": 1000}
    if class_name == "UniPCMultistepScheduler":
        config |= {
            "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001, "disable_corrector": [],
            "dynamic_thresholding_ratio": 0.995, "final_sigmas_type": "zero",
            "flow_shift": 3.0 if flow_shift is None else flow_shift, "lower_order_final": True, "predict_x0": True,
            "prediction_type": "flow_prediction", "rescale_betas_zero_snr": False, "sample_max_value": 1.0,
            "solver_order": 2, "solver_p": None, "solver_type": "bh2", "steps_offset": 0, "thresholding": False,
            "timestep_spacing": "linspace", "trained_betas": None, "use_beta_sigmas": False,
            "use_exponential_sigmas": False, "use_flow_sigmas": True, "use_karras_sigmas": False,
        }  # fmt: skip
    else:
        config |= {"shift": 1.0 if flow_shift is None else flow_shift, "use_dynamic_shifting": False}
    return config


def class_config(table: str, version: str) -> dict[str, Any]:
    """Return the recorded configuration of a diffusers class as release `version` would have written it."""
    return recorded_config(table) | {"_diffusers_version": version}


def write_tokenizer(folder: Path) -> None:
    """Write the stub of UMT5's tokenizer: its configuration is real, its vocabulary is a hole."""
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": True, "bos_token": "<s>", "eos_token": "</s>", "extra_ids": 300,
            "model_max_length": 512, "pad_token": "<pad>", "sp_model_kwargs": {}, "tokenizer_class": "T5Tokenizer",
            "unk_token": "<unk>", "clean_up_tokenization_spaces": True,
        },
    )  # fmt: skip
    write_json(folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    write_hole(folder / "spiece.model", b"\n\x0e\n\x05<pad>", 4_548_313)
    write_json(folder / "tokenizer.json", {"version": "1.0", "model": {"type": "Unigram", "vocab": []}})


def write_image_processor(folder: Path) -> None:
    write_json(
        folder / "preprocessor_config.json",
        {
            "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True,
            "do_normalize": True, "do_rescale": True, "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_processor_type": "CLIPImageProcessor",
            "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": 224},
        },
    )  # fmt: skip


def original_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of the original layout: WanModel's registered fields."""
    base = {
        "_class_name": "WanModel", "_diffusers_version": "0.30.0", "eps": 1e-06, "freq_dim": 256, "text_len": 512,
    }  # fmt: skip
    return base | fields
