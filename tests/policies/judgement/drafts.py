"""Models in memory, to be broken one way at a time: real configurations and headers, recorded from the real classes."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

from tests.assets.corpus.tables import recorded_config, recorded_tensors
from wan_compat.policies.architecture import Architecture, Evidence
from wan_compat.policies.detection.traits import traits_of
from wan_compat.policies.facts import FileFact, HostFacts, ModelFacts, TensorFact, WeightFile
from wan_compat.policies.findings import Finding
from wan_compat.policies.judgement.judge import judge
from wan_compat.policies.judgement.versions import Installed

_WIDTHS = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1}

BIG = HostFacts(memory_total_bytes=512 << 30, memory_available_bytes=500 << 30, cpu_count=8, is_root=False)
CURRENT = Installed(
    dict.fromkeys(("diffusers", "transformers", "torch", "accelerate", "safetensors", "sentencepiece", "ftfy"), "99.0")
)

ARCHITECTURE = Architecture(
    is_wan=True,
    architecture_type="wan_t2v",
    version="2.1",
    variant="wan2.1-t2v-1.3b",
    candidates=(),
    confidence=0.99,
    evidence=(Evidence("in_channels 16", "transformer"),),
    layout="diffusers",
    pipeline_class="WanPipeline",
    also_loads_as=("WanVideoToVideoPipeline",),
    capabilities=("text_to_video",),
    vae_dimensions=3,
    components={},
)


@dataclasses.dataclass
class Draft:
    """A model that a test may change. `weights` holds tensors by file; every weight and document is a file too."""

    documents: dict[str, dict[str, Any]]
    weights: dict[str, dict[str, TensorFact]]
    others: set[str]
    architecture: Architecture = ARCHITECTURE
    problems: tuple[Finding, ...] = ()
    host: HostFacts = BIG
    installed: Installed = CURRENT
    is_file: bool = False
    repository: str | None = None

    @property
    def index(self) -> dict[str, Any]:
        return self.documents["model_index.json"]

    def config(self, component: str) -> dict[str, Any]:
        return self.documents[f"{component}/config.json"]

    def tensors(self, component: str) -> dict[str, TensorFact]:
        return next(found for path, found in self.weights.items() if path.startswith(f"{component}/"))

    def drop(self, prefix: str) -> None:
        for holder in (self.documents, self.weights):
            for path in [path for path in holder if path.startswith(prefix)]:
                del holder[path]
        self.others = {path for path in self.others if not path.startswith(prefix)}

    def rename(self, old: str, new: str) -> None:
        self.weights[new] = self.weights.pop(old)

    def known_as(self, **changes: Any) -> None:
        self.architecture = dataclasses.replace(self.architecture, **changes)

    def facts(self) -> ModelFacts:
        paths = [*self.documents, *self.weights, *self.others]
        return ModelFacts(
            root="/models/m",
            files={path: FileFact(path, f"/models/m/{path}", 1000, 1, 2, 3) for path in sorted(paths)},
            documents=self.documents,
            weights={
                path: WeightFile(path, "gguf" if path.endswith(".gguf") else "safetensors", found, {}, 100)
                for path, found in self.weights.items()
            },
            problems=self.problems,
            is_file=self.is_file,
            repository=self.repository,
        )

    def judged(self) -> tuple[Finding, ...]:
        facts = self.facts()
        return judge(facts, self.architecture, traits_of(facts), self.installed, self.host)


Change = Callable[[Draft], object]


def tensors(table: str, dtype: str = "BF16") -> dict[str, TensorFact]:
    return {
        name: TensorFact(dtype, shape, math.prod(shape) * _WIDTHS[dtype])
        for name, shape in recorded_tensors(table).items()
    }


def text_to_video(table: str = "wan-t2v-1.3b", vae: str = "vae-wan2.1", experts: int = 1) -> Draft:
    """Return a sound text-to-video model in diffusers layout."""
    names = ["transformer", "transformer_2"][:experts]
    index: dict[str, Any] = {
        "_class_name": "WanPipeline",
        "_diffusers_version": "0.35.0",
        "boundary_ratio": 0.875 if experts == 2 else None,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer_2": [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    documents = {
        "model_index.json": index,
        "scheduler/scheduler_config.json": {"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0},
        "text_encoder/config.json": recorded_config("umt5-xxl") | {"architectures": ["UMT5EncoderModel"]},
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "T5Tokenizer"},
        "vae/config.json": recorded_config(vae),
    }
    weights = {
        "text_encoder/model.safetensors": tensors("umt5-xxl"),
        "vae/diffusion_pytorch_model.safetensors": tensors(vae, "F32"),
    }
    for name in names:
        index[name] = ["diffusers", recorded_config(table)["_class_name"]]
        documents[f"{name}/config.json"] = recorded_config(table)
        weights[f"{name}/diffusion_pytorch_model.safetensors"] = tensors(table)
    return Draft(copy.deepcopy(documents), weights, {"tokenizer/tokenizer.json", "README.md"})


def image_to_video() -> Draft:
    """Return Wan 2.1 image-to-video with its image encoder."""
    draft = text_to_video("wan-i2v-14b")
    draft.index["_class_name"] = "WanImageToVideoPipeline"
    draft.index["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
    draft.index["image_processor"] = ["transformers", "CLIPImageProcessor"]
    config = recorded_config("clip-vision-projection") | {"architectures": ["CLIPVisionModelWithProjection"]}
    draft.documents["image_encoder/config.json"] = config
    draft.documents["image_processor/preprocessor_config.json"] = {"image_processor_type": "CLIPImageProcessor"}
    draft.weights["image_encoder/model.safetensors"] = tensors("clip-vision-projection")
    draft.known_as(
        architecture_type="wan_i2v",
        variant="wan2.1-i2v-14b-480p",
        pipeline_class="WanImageToVideoPipeline",
        also_loads_as=(),
        capabilities=("image_to_video",),
    )
    return draft


def split(draft: Draft, component: str, total: int, *, index: bool = True) -> list[str]:
    """Spread a component's weights over shards, with their index; returns the shards' paths."""
    stem = "model" if component == "text_encoder" else "diffusion_pytorch_model"
    whole = f"{component}/{stem}.safetensors"
    items = list(draft.weights.pop(whole).items())
    step = -(-len(items) // total)
    paths, weight_map = [], {}
    for number in range(total):
        file = f"{stem}-{number + 1:05d}-of-{total:05d}.safetensors"
        part = dict(items[number * step : (number + 1) * step])
        draft.weights[f"{component}/{file}"] = part
        weight_map |= dict.fromkeys(part, file)
        paths.append(f"{component}/{file}")
    if index:
        draft.documents[f"{whole}.index.json"] = {"metadata": {}, "weight_map": weight_map}
    return paths


def codes(found: tuple[Finding, ...]) -> list[str]:
    return [item.code for item in found]


def the(found: tuple[Finding, ...], code: str) -> Finding:
    """Return the one finding of a code."""
    matching = [item for item in found if item.code == code]
    assert len(matching) == 1, [(item.code, item.message) for item in found]
    return matching[0]
