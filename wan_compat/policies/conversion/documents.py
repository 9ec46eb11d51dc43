"""The documents of a converted model: model_index.json, the scheduler's and the image processor's configurations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from wan_compat.policies.conversion.layout import PlannedTensor
from wan_compat.policies.facts import FileFact, ModelFacts
from wan_compat.policies.pipelines import ADMITTED_CLASSES

TOKENIZER_FOLDER = "google/umt5-xxl"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json", "special_tokens_map.json")

# With two experts, where the first hands over to the second (scripts/convert_wan_to_diffusers.py of diffusers).
_BOUNDARIES = {"WanPipeline": 0.875, "WanImageToVideoPipeline": 0.9}


@dataclasses.dataclass(frozen=True)
class Component:
    """One part of the converted model: the name of its folder, its class, and what is in it."""

    name: str
    library: Literal["diffusers", "transformers"]
    class_name: str
    config: Mapping[str, Any] | None
    tensors: tuple[PlannedTensor, ...]


def tokenizer_files(facts: ModelFacts) -> tuple[tuple[FileFact, str], ...]:
    found = [(name, facts.files.get(f"{TOKENIZER_FOLDER}/{name}")) for name in TOKENIZER_FILES]
    present = tuple((fact, f"tokenizer/{name}") for name, fact in found if fact is not None)
    return present if any(target.endswith(("tokenizer.json", "spiece.model")) for _, target in present) else ()


def pipeline_documents(
    facts: ModelFacts, components: Mapping[str, Component], pipeline: str, flow_shift: float
) -> dict[str, str]:
    named = facts.documents.get(f"{TOKENIZER_FOLDER}/tokenizer_config.json", {}).get("tokenizer_class")
    library, classes = ADMITTED_CLASSES["tokenizer"]
    index: dict[str, Any] = {
        "_class_name": pipeline,
        "tokenizer": [library, named if named in classes else "T5TokenizerFast"],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        **{name: [component.library, component.class_name] for name, component in components.items()},
    }
    documents: dict[str, str] = {}
    if "image_encoder" in components:
        index["image_processor"] = ["transformers", "CLIPImageProcessor"]
        side = (components["image_encoder"].config or {})["image_size"]
        documents["image_processor/preprocessor_config.json"] = to_json(
            {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": side},
                "crop_size": {"height": side, "width": side},
                "do_resize": True,
                "do_center_crop": True,
                "do_normalize": True,
                "do_rescale": True,
                "do_convert_rgb": True,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "resample": 3,
            }
        )
    if "transformer_2" in components:
        index["boundary_ratio"] = _BOUNDARIES.get(pipeline)
    if (components["vae"].config or {})["z_dim"] == 48:
        index["expand_timesteps"] = True
    scheduler = {
        "_class_name": "UniPCMultistepScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": flow_shift,
    }
    return documents | {"model_index.json": to_json(index), "scheduler/scheduler_config.json": to_json(scheduler)}


def to_json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True) + "\n"
