"""What a mutation works on: a built entry, the groups of entries that some need, and how an expectation loosens."""

from __future__ import annotations

import dataclasses
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.assets.corpus.expected import EXPECTED, Expected
from tests.assets.corpus.lookalikes import LOOKALIKES
from tests.assets.corpus.repositories import BUILDERS
from wan_compat.policies.variants import VARIANTS


@dataclasses.dataclass
class Subject:
    """A built entry that a mutation may change; `path` is what will be looked at."""

    name: str
    path: Path
    expected: Expected
    rng: random.Random

    @property
    def is_lookalike(self) -> bool:
        return self.name in LOOKALIKES

    @property
    def index(self) -> Path | None:
        for name in ("model_index.json", "modular_model_index.json"):
            if (self.path / name).is_file():
                return self.path / name
        return None

    @property
    def denoisers(self) -> list[Path]:
        """The folders with a denoiser's configuration."""
        names = ("transformer", "transformer_2", "unet", "dit", "high_noise_model", "low_noise_model", "")
        return [self.path / name for name in names if (self.path / name / "config.json").is_file()]

    @property
    def has_weights(self) -> bool:
        return bool(self.denoisers) and all(list(folder.glob("*.safetensors")) for folder in self.denoisers)

    def edit(self, path: Path, change: Callable[[dict[str, Any]], None]) -> None:
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document, indent=2))


Mutation = Callable[[Subject], Expected | None]


# Mutations that apply to a few entries only, and to which: building all others in vain would take most of the time.
ONLY: dict[str, tuple[str, ...]] = {}


def only(*names: str) -> Callable[[Mutation], Mutation]:
    def register(mutation: Mutation) -> Mutation:
        ONLY[mutation.__name__] = names
        return mutation

    return register


SINGLE_FILES = tuple(
    name for name in (*BUILDERS, *LOOKALIKES) if "single file" in name or name == "Wan-Animate-2 official checkpoint"
)


ORIGINALS = tuple(name for name, expected in EXPECTED.items() if "original" in expected.layouts)


SINGLE = (
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
)  # fmt: skip


EXPERTS = (
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
    "linoyts/Wan2.2-VACE-Fun-14B-diffusers",
)


DONORS = (
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers", "Wan-AI/Wan2.1-VACE-14B-diffusers", "Wan-AI/Wan2.2-Animate-14B-Diffusers",
)  # fmt: skip


# Only a field of the configuration tells these from their base model.
DECIDED_BY_A_FIELD = {"wan_va fine-tune (action-conditioned)"}


# The class of the pipeline, in the index alone, tells these from what they were made of.
DECIDED_BY_INDEX_CLASS = (
    "SkyReels",
    "Helios",
    "FastW",
    "Animate-2",
    "Chrono",
    "Lucy",
    "AnyFlow",
    "Causal",
    "S2V",
    "krea",
    "pre-release",
    "modular",
    "Modular",
    "use:",
)


def loosen(expected: Expected) -> Expected:
    """Any model with the same tensors is right."""
    slugs = [slug for slug in expected.alike if slug in VARIANTS]
    types = {*expected.types, *(VARIANTS[slug].architecture_type for slug in slugs)}
    versions = {*expected.versions, *(VARIANTS[slug].version for slug in slugs)} if expected.versions else ()
    return dataclasses.replace(
        expected, base=(*expected.base, *slugs), types=tuple(types), versions=tuple(versions), pipelines=()
    )


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return header, header.pop("__metadata__", {})


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)
