"""Damaged, mixed and misleading forms of the corpus, each with what detection must still say about it.

A mutation works on the files of a built repository. It returns the expectation that holds afterwards: the same one
where the evidence that is left still decides, a looser one where it does not, None where it does not apply. Nothing
here knows how detection works; what decides is the tensors' names and shapes first, then the denoiser's class and
configuration, then the index. Names of files and folders never do.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.assets.corpus.expected import EXPECTED, Expected
from tests.assets.corpus.files import as_cache_snapshot, typed, write_hole, write_pickle, write_safetensors
from tests.assets.corpus.lookalikes import LOOKALIKES
from tests.assets.corpus.repositories import BUILDERS
from tests.assets.corpus.tables import recorded_tensors
from tests.assets.corpus.tensors import original_names
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

# Only a field of the configuration tells these from their base model.
_DECIDED_BY_A_FIELD = {"wan_va fine-tune (action-conditioned)"}
# The class of the pipeline, in the index alone, tells these from what they were made of.
_DECIDED_BY_INDEX_CLASS = (
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


def _fields(document: dict[str, Any]) -> list[str]:
    return [name for name in document if not name.startswith("_") and name not in ("architectures", "auto_map")]


def _change_fields(subject: Subject, change: Callable[[dict[str, Any], str], None]) -> Expected | None:
    """Change one to three fields of the denoiser's configuration, the same in both experts."""
    if not subject.has_weights or subject.name in _DECIDED_BY_A_FIELD:
        return None
    fields = _fields(json.loads((subject.denoisers[0] / "config.json").read_text()))
    chosen = subject.rng.sample(fields, min(len(fields), subject.rng.randint(1, 3)))
    for folder in subject.denoisers:
        for field in chosen:
            subject.edit(folder / "config.json", lambda document, field=field: change(document, field))
    return subject.expected


def field_dropped(subject: Subject) -> Expected | None:
    return _change_fields(subject, lambda document, field: document.pop(field))


def field_nulled(subject: Subject) -> Expected | None:
    return _change_fields(subject, lambda document, field: document.update({field: None}))


def field_renamed(subject: Subject) -> Expected | None:
    return _change_fields(subject, lambda document, field: document.update({field + "_renamed": document.pop(field)}))


def field_retyped(subject: Subject) -> Expected | None:
    def change(document: dict[str, Any], field: str) -> None:
        value = document[field]
        others: list[Any] = [str(value), [value], {"value": value}, True, -1, 1e308, "", 2**70]
        document[field] = subject.rng.choice(others)

    return _change_fields(subject, change)


def unknown_fields(subject: Subject) -> Expected | None:
    values = ["x", 3, None, [1, 2], {"a": 1}, "Wan2.2", True]
    paths = [folder / "config.json" for folder in subject.denoisers] + ([subject.index] if subject.index else [])
    if not paths:
        return None
    path = subject.rng.choice(paths)
    extra = {f"x_{subject.rng.randrange(10**6)}": subject.rng.choice(values) for _ in range(subject.rng.randint(1, 5))}
    subject.edit(path, lambda document: document.update(extra))
    return subject.expected


def config_missing(subject: Subject) -> Expected | None:
    if not subject.has_weights or subject.index is None:
        return None
    for folder in subject.denoisers:
        (folder / "config.json").unlink()
    return subject.expected


def original_config_missing(subject: Subject) -> Expected | None:
    """Without its config.json a folder of the original layout is a folder of weights: told by them alone."""
    if not subject.has_weights or "original" not in subject.expected.layouts or subject.name in _DECIDED_BY_A_FIELD:
        return None
    for folder in subject.denoisers:
        (folder / "config.json").unlink()
    return dataclasses.replace(loosen(subject.expected), layouts=("original", "component", "single_file", "unknown"))


def weights_missing(subject: Subject) -> Expected | None:
    """The configuration alone: right where diffusers' fields say everything."""
    if not subject.has_weights or subject.index is None or subject.name.startswith(("krea", "FastVideo/Wan2.2-S2V")):
        return None
    for folder in subject.denoisers:
        for path in (*folder.glob("*.safetensors"), *folder.glob("*.index.json")):
            path.unlink()
    return subject.expected


def index_missing(subject: Subject) -> Expected | None:
    if subject.index is None or not subject.has_weights or subject.name in ("meituan-longcat/LongCat-Video",):
        return None
    foreign = ("JaceyH919/Gen3R", "linyq/kiwi-edit-5b-reference-only-diffusers")
    if subject.name in foreign:
        return None  # only the index says that their transformer is somebody else's
    subject.index.unlink()
    return _without_index(subject)


def _without_index(subject: Subject) -> Expected:
    layouts = ("diffusers", "modular", "component", "original", "unknown")
    loose = dataclasses.replace(loosen(subject.expected), layouts=layouts)
    if subject.is_lookalike:
        return dataclasses.replace(loose, is_wan=(False, None), types=(*loose.types, "unknown"))
    if "Animate-2" in subject.name:
        both = ("wan2.2-animate-2-14b", "wan2.2-animate-2-14b-distilled")
        return dataclasses.replace(loose, base=both, alike=frozenset(both))
    if "Helios" in subject.name:
        helios = ("helios-base", "helios-mid", "helios-distilled")
        return dataclasses.replace(loose, base=helios, alike=frozenset(helios))
    if "use:" in subject.name or "tiny" in subject.name:
        return dataclasses.replace(loose, versions=())
    return loose


def index_corrupt(subject: Subject) -> Expected | None:
    if (
        subject.index is None
        or not subject.has_weights
        or subject.name
        in ("JaceyH919/Gen3R", "linyq/kiwi-edit-5b-reference-only-diffusers", "meituan-longcat/LongCat-Video")
    ):
        return None
    subject.index.write_bytes(_corrupted(subject.index.read_bytes(), subject.rng))
    expected = _without_index(subject)
    # A byte order mark is no reason not to read the rest.
    return dataclasses.replace(expected, is_wan=tuple({*expected.is_wan, *subject.expected.is_wan}))


def config_corrupt(subject: Subject) -> Expected | None:
    if not subject.has_weights or subject.index is None:
        return None
    for folder in subject.denoisers:
        path = folder / "config.json"
        path.write_bytes(_corrupted(path.read_bytes(), subject.rng))
    return subject.expected


def _corrupted(raw: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(6)
    if kind == 0:
        return raw[: rng.randrange(1, len(raw) - 2)]
    if kind == 1:
        return b"\xef\xbb\xbf" + raw
    if kind == 2:
        return raw.replace(b"{", b'{"_class_name": "FluxPipeline", "_class_name": "FluxPipeline",', 1)
    if kind == 3:
        return b"[" + raw + b"]"
    if kind == 4:
        return b""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 500\n"


def pipeline_class_wrong(subject: Subject) -> Expected | None:
    """The index names another pipeline: what the denoiser is does not change."""
    if subject.index is None or subject.index.name != "model_index.json":
        return None
    if subject.is_lookalike:
        if subject.name.startswith(("Jacey", "linyq")):
            return None
        subject.edit(
            subject.index,
            lambda document: document.update(
                _class_name=subject.rng.choice(["WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline"])
            ),
        )
        return dataclasses.replace(subject.expected, is_wan=(False, None), types=(*subject.expected.types, "unknown"))
    if any(word in subject.name for word in _DECIDED_BY_INDEX_CLASS):
        return None
    wrong = subject.rng.choice(
        [
            "StableDiffusionPipeline",
            "FluxPipeline",
            "MyOwnPipeline",
            "",
            None,
            7,
            "WanPipeline",
            "WanImageToVideoPipeline",
        ]
    )
    subject.edit(subject.index, lambda document: document.update(_class_name=wrong))
    loose = loosen(subject.expected)
    if wrong in ("WanPipeline", "WanImageToVideoPipeline", "StableDiffusionPipeline", "FluxPipeline"):
        both = {*subject.expected.pipelines, None}
        if "wan_ti2v" in subject.expected.types:
            both.add("WanImageToVideoPipeline")
        slugs = [slug for slug in subject.expected.alike if slug in VARIANTS]
        return dataclasses.replace(loose, pipelines=tuple(both | {VARIANTS[slug].pipeline_class for slug in slugs}))
    return loose


def pipeline_class_removed(subject: Subject) -> Expected | None:
    if subject.index is None or subject.name.startswith(("Jacey", "linyq")):
        return None
    if any(word in subject.name for word in _DECIDED_BY_INDEX_CLASS):
        return None
    subject.edit(subject.index, lambda document: document.pop("_class_name"))
    return loosen(subject.expected)


def version_mixed(subject: Subject) -> Expected | None:
    if subject.index is None:
        return None
    value = subject.rng.choice(["0.10.0", "0.33.0.dev0", "99.0", "garbage", "", None, 5, ["0.35.0"]])
    for path in [subject.index, *(folder / "config.json" for folder in subject.denoisers)]:
        if subject.rng.random() < 0.7:
            subject.edit(path, lambda document: document.update(_diffusers_version=value))
    return subject.expected


_DISAGREEING = {
    "in_channels": (16, 36, 48), "out_channels": (16, 48), "num_layers": (30, 40), "num_attention_heads": (12, 24, 40),
    "ffn_dim": (8960, 13824, 14336), "image_dim": (None, 1280), "added_kv_proj_dim": (None, 1536, 5120),
    "in_dim": (16, 36, 48), "out_dim": (16, 48), "dim": (1536, 3072, 5120), "pos_embed_seq_len": (None, 514),
    "model_type": ("t2v", "i2v", "ti2v", "flf2v"),
}  # fmt: skip


def header_against_config(subject: Subject) -> Expected | None:
    """The configuration is that of another size or task; the tensors are what they are."""
    if not subject.has_weights or subject.is_lookalike or subject.name in _DECIDED_BY_A_FIELD:
        return None
    fields = _fields(json.loads((subject.denoisers[0] / "config.json").read_text()))
    chosen = {
        field: subject.rng.choice(values)
        for field, values in _DISAGREEING.items()
        if field in fields and subject.rng.random() < 0.6
    }
    for folder in subject.denoisers:
        subject.edit(folder / "config.json", lambda document: document.update(chosen))
    return subject.expected


_DONORS = (
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers", "Wan-AI/Wan2.1-VACE-14B-diffusers", "Wan-AI/Wan2.2-Animate-14B-Diffusers",
)  # fmt: skip


def transformer_swapped(subject: Subject) -> Expected | None:
    """One Wan model's denoiser in another one's repository: the denoiser decides."""
    if subject.name not in _DONORS:
        return None
    donor = subject.rng.choice([name for name in _DONORS if name != subject.name])
    other = BUILDERS[donor](subject.path.parent / "donor")
    shutil.rmtree(subject.path / "transformer")
    shutil.move(other / "transformer", subject.path / "transformer")
    expected = EXPECTED[donor]
    return dataclasses.replace(loosen(expected), vae=(3,))


def transformer_foreign(subject: Subject) -> Expected | None:
    """A denoiser of no kin under an index that says Wan."""
    if subject.name not in _DONORS:
        return None
    donor = subject.rng.choice(
        ["lookalike: LTX-Video", "lookalike: Mochi", "Qwen/Qwen-Image", "lookalike: Flux", "lookalike: HunyuanVideo"]
    )
    other = LOOKALIKES[donor](subject.path.parent / "donor")
    shutil.rmtree(subject.path / "transformer")
    shutil.move(other / "transformer", subject.path / "transformer")
    return Expected((False, None), ("unknown",), ("diffusers",), vae=(3,))


def vae_swapped(subject: Subject) -> Expected | None:
    """The VAE never decides, neither for Wan nor for its look-alikes."""
    if subject.index is None or not (subject.path / "vae").is_dir() or subject.name.startswith("linyq"):
        return None
    donor = subject.rng.choice(["Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"])
    other = BUILDERS[donor](subject.path.parent / "donor")
    shutil.rmtree(subject.path / "vae")
    shutil.move(other / "vae", subject.path / "vae")
    subject.edit(subject.index, lambda document: document.update(vae=["diffusers", "AutoencoderKLWan"]))
    return dataclasses.replace(subject.expected, vae=(3,))


def vae_missing(subject: Subject) -> Expected | None:
    if subject.index is None or not (subject.path / "vae").is_dir():
        return None
    shutil.rmtree(subject.path / "vae")
    return dataclasses.replace(subject.expected, vae=())


def denoiser_missing(subject: Subject) -> Expected | None:
    """A VAE and a text encoder, and an index that says Wan: nothing is there to judge but its word."""
    if subject.name not in _DONORS or subject.index is None:
        return None
    shutil.rmtree(subject.path / "transformer")
    subject.edit(subject.index, lambda document: document.pop("transformer"))
    return Expected((None, True), (), (), vae=(3,))


_NAMES = ("stable-diffusion-v1-5", "Wan2.2-I2V-A14B-Diffusers", "Wan2.1-T2V-1.3B", "FLUX.1-dev", "VACE", "model", "a b")


def folder_renamed(subject: Subject) -> Expected | None:
    name = subject.rng.choice(_NAMES)
    if subject.path.is_file():
        target = subject.path.with_name(name + subject.path.suffix)
    else:
        target = subject.path.with_name(name)
    subject.path = subject.path.rename(target)
    return subject.expected


def extra_files(subject: Subject) -> Expected | None:
    if subject.path.is_file():
        return None
    (subject.path / "README.md").write_text("# Wan2.2 Stable Diffusion FLUX\n")
    (subject.path / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    write_hole(subject.path / "assets" / "example.mp4", b"\0\0\0\x20ftypisom", 10**7)
    write_hole(subject.path / "assets" / "t2v.png", b"\x89PNG\r\n\x1a\n", 10**5)
    (subject.path / "LICENSE.txt").write_text("Apache-2.0")
    if subject.rng.random() < 0.5:
        (subject.path / "examples").mkdir(exist_ok=True)
        (subject.path / "examples" / "prompts.json").write_text('[{"prompt": "a fox"}]')
    return subject.expected


def null_keys(subject: Subject) -> Expected | None:
    """What diffusers >= 0.35 writes when it saves a model that has none of these."""
    if subject.index is None:
        return None

    def change(document: dict[str, Any]) -> None:
        for key, value in {
            "boundary_ratio": None,
            "transformer_2": [None, None],
            "expand_timesteps": False,
            "image_encoder": [None, None],
        }.items():
            document.setdefault(key, value)

    subject.edit(subject.index, change)
    return subject.expected


_SINGLE = (
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
)  # fmt: skip
_EXPERTS = (
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
    "linoyts/Wan2.2-VACE-Fun-14B-diffusers",
)


def boundary_on_one_expert(subject: Subject) -> Expected | None:
    """A converter's mistake: diffusers' own script once wrote a boundary for Wan 2.1."""
    if subject.index is None or (subject.name not in _SINGLE and not subject.is_lookalike):
        return None
    value = subject.rng.choice([0.875, 0.9])
    subject.edit(subject.index, lambda document: document.update(boundary_ratio=value, transformer_2=[None, None]))
    return subject.expected


def boundary_lost(subject: Subject) -> Expected | None:
    if subject.name not in _EXPERTS or subject.index is None:
        return None
    if subject.rng.random() < 0.5:
        subject.edit(subject.index, lambda document: document.pop("boundary_ratio"))
    else:
        subject.edit(subject.index, lambda document: document.update(boundary_ratio=None))
    return subject.expected


def false_image_dim(subject: Subject) -> Expected | None:
    """The official I2V-A14B once said image_dim 1280 without having the tensors."""
    if not any(word in subject.name for word in ("A14B-Diffusers", "TI2V-5B")) or subject.index is None:
        return None
    for folder in subject.denoisers:
        subject.edit(folder / "config.json", lambda document: document.update(image_dim=1280, added_kv_proj_dim=5120))
    return subject.expected


def foreign_library(subject: Subject) -> Expected | None:
    """The transformer's class is of somebody's package: no pipeline of diffusers runs it, whatever it is called."""
    if subject.is_lookalike or subject.index is None or subject.index.name != "model_index.json":
        return None
    library = subject.rng.choice(["my_package.models", "wan", "diffusers_fork", "videox_fun.models"])

    def change(document: dict[str, Any]) -> None:
        for key in ("transformer", "transformer_2"):
            if key in document and document[key][0] is not None:
                document[key] = [library, document[key][1]]

    subject.edit(subject.index, change)
    return Expected((True, False, None), (), ("diffusers",), pipelines=(None,))


def _header(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return header, header.pop("__metadata__", {})


def _rewrite(path: Path, change: Callable[[str], str | None]) -> None:
    """Write a file again with other names; a tensor whose new name is None is left out."""
    header, metadata = _header(path)
    tensors = {}
    for name, entry in header.items():
        if (new := change(name)) is not None:
            tensors[new] = (entry["dtype"], tuple(entry["shape"]))
    write_safetensors(path, tensors, metadata)


_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")


def prefix_changed(subject: Subject) -> Expected | None:
    if not subject.path.is_file() or subject.path.suffix != ".safetensors" or "lora" in subject.expected.layouts:
        return None
    if "component" in subject.expected.layouts and not subject.is_lookalike:
        return None
    new = subject.rng.choice(_PREFIXES)

    def change(name: str) -> str:
        for old in _PREFIXES:
            if old and name.startswith(old):
                return new + name.removeprefix(old)
        return new + name

    _rewrite(subject.path, change)
    return subject.expected


def tensors_missing(subject: Subject) -> Expected | None:
    """Some tensors of later blocks are gone: an incomplete copy of the same model."""
    if (
        not subject.path.is_file()
        or subject.path.suffix != ".safetensors"
        or "single_file" not in subject.expected.layouts
    ):
        return None

    def change(name: str) -> str | None:
        inner = any(f"blocks.{number}." in name for number in range(5, 29))
        return None if inner and subject.rng.random() < 0.05 else name

    _rewrite(subject.path, change)
    return subject.expected


def fewer_layers(subject: Subject) -> Expected | None:
    """A tiny or pruned model: the same architecture, none of the published sizes."""
    if subject.name not in (*_SINGLE, *_EXPERTS[:2], "Wan-AI/Wan2.2-TI2V-5B-Diffusers"):
        return None
    for folder in subject.denoisers:
        for path in folder.glob("*.index.json"):
            path.unlink()
        tensors = {}
        for path in sorted(folder.glob("*.safetensors")):
            for name, entry in _header(path)[0].items():
                words = name.split(".")
                if words[0] != "blocks" or int(words[1]) < 2:
                    tensors[name] = (entry["dtype"], tuple(entry["shape"]))
            path.unlink()
        write_safetensors(folder / "diffusion_pytorch_model.safetensors", tensors)
        subject.edit(folder / "config.json", lambda document: document.update(num_layers=2))
    return dataclasses.replace(subject.expected, variant="", alike=frozenset(), versions=())


def in_cache(subject: Subject) -> Expected | None:
    if subject.path.is_file() or not any(subject.path.iterdir()):
        return None
    repository = subject.rng.choice(
        ["someone/model", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "runwayml/stable-diffusion-v1-5"]
    )
    if repository.startswith("Wan-AI") and not subject.is_lookalike and subject.name != repository:
        repository = "someone/finetune"
    subject.path = as_cache_snapshot(subject.path, subject.path.parent / "hub", repository, "f" * 40)
    return subject.expected


_ONE_FILE = "diffusion_pytorch_model.safetensors"


def weights_corrupt(subject: Subject) -> Expected | None:
    """Weights that were never downloaded, or not to their end: the configuration is left."""
    if not subject.has_weights or subject.index is None or subject.name.startswith(("krea", "FastVideo/Wan2.2-S2V")):
        return None
    kind = subject.rng.randrange(3)
    for folder in subject.denoisers:
        for path in folder.glob("*.safetensors"):
            if kind == 0:
                path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n")
            elif kind == 1:
                path.write_bytes(path.open("rb").read(100))
            else:
                path.write_bytes(b"")
    return subject.expected


def weights_pickled(subject: Subject) -> Expected | None:
    """The same repository with .bin weights, as some were published: nobody reads those."""
    expected = weights_missing(subject)
    if expected is not None:
        for folder in subject.denoisers:
            write_pickle(folder / "diffusion_pytorch_model.bin", 10**9)
    return expected


def shard_missing(subject: Subject) -> Expected | None:
    if not subject.has_weights or subject.name.startswith("krea"):
        return None
    found = False
    for folder in subject.denoisers:
        shards = sorted(folder.glob("*-of-*.safetensors"))
        if len(shards) > 2:
            subject.rng.choice(shards[1:-1]).unlink()
            found = True
    # What is gone may be what told two models apart.
    return loosen(subject.expected) if found else None


def variant_files(subject: Subject) -> Expected | None:
    """`diffusion_pytorch_model.fp16.safetensors`: what `save_pretrained(variant="fp16")` writes."""
    if not subject.has_weights or subject.index is None:
        return None
    for folder in subject.denoisers:
        for path in list(folder.glob("*.safetensors")):
            path.rename(path.with_name(path.name.replace("diffusion_pytorch_model", "diffusion_pytorch_model.fp16")))
        for path in list(folder.glob("*.index.json")):
            text = path.read_text().replace("diffusion_pytorch_model", "diffusion_pytorch_model.fp16")
            path.with_name("diffusion_pytorch_model.safetensors.index.fp16.json").write_text(text)
            path.unlink()
    return subject.expected


def _merge(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Take the weights of a folder out of it and return what they were."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in _header(path)[0].items():
            tensors[name] = (entry["dtype"], tuple(entry["shape"]))
        path.unlink()
    for path in folder.glob("*.index.json"):
        path.unlink()
    return tensors


def quantized(subject: Subject) -> Expected | None:
    """bitsandbytes' 4 bits: packed matrices lose their shape, and bring tensors of their own."""
    if not subject.has_weights or subject.index is None or subject.is_lookalike or subject.name.startswith("krea"):
        return None
    config = {"bnb_4bit_quant_type": "nf4", "load_in_4bit": True, "quant_method": "bitsandbytes"}
    for folder in subject.denoisers:
        packed: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, (dtype, shape) in _merge(folder).items():
            if "blocks." in name and name.endswith(".weight") and len(shape) == 2:
                count = shape[0] * shape[1]
                packed[name] = ("U8", (count // 2, 1))
                packed[f"{name}.absmax"] = ("U8", (count // 64,))
                packed[f"{name}.quant_map"] = ("F32", (16,))
                packed[f"{name}.quant_state.bitsandbytes__nf4"] = ("U8", (120,))
            else:
                packed[name] = (dtype, shape)
        write_safetensors(folder / _ONE_FILE, packed)
        subject.edit(folder / "config.json", lambda document: document.update(quantization_config=config))
    return subject.expected


def all_in_one(subject: Subject) -> Expected | None:
    """A ComfyUI checkpoint: denoiser, VAE and text encoder in one file."""
    if not subject.path.is_file() or subject.name in LOOKALIKES or subject.path.suffix != ".safetensors":
        return None
    if subject.expected.layouts != ("single_file",):
        return None
    header, _ = _header(subject.path)
    bundle = {}
    for name, entry in header.items():
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        bundle["model.diffusion_model." + name] = (entry["dtype"], tuple(entry["shape"]))
    for name, shape in recorded_tensors("original-vae-wan2.1").items():
        bundle["vae." + name] = ("BF16", shape)
    for name, shape in recorded_tensors("umt5-xxl").items():
        bundle["text_encoders.umt5xxl.transformer." + name] = ("F8_E4M3", shape)
    write_safetensors(subject.path, bundle)
    return dataclasses.replace(subject.expected, vae=(0, 3))


def two_expert_files(subject: Subject) -> Expected | None:
    """A folder with the high and the low noise file of Wan 2.2 side by side."""
    tables = {"t2v": "wan-t2v-14b", "i2v": "wan-i2v-a14b"}
    if subject.name not in (
        "Comfy single file: wan2.2_t2v_high_noise_14B_fp16",
        "Comfy single file: wan2.2_i2v_high_noise_14B_fp16",
    ):
        return None
    task = "t2v" if "t2v" in subject.name else "i2v"
    other = subject.path.with_name(subject.path.name.replace("high", "low"))
    write_safetensors(other, typed(original_names(tables[task]), "F16"), {})
    subject.path = subject.path.parent
    return loosen(subject.expected)


_HARMLESS: tuple[Mutation, ...] = (
    field_dropped, field_nulled, field_renamed, field_retyped, unknown_fields, version_mixed, extra_files, null_keys,
    vae_missing, header_against_config, variant_files,
)  # fmt: skip


def several_at_once(subject: Subject) -> Expected | None:
    """Two to four of the mutations that leave the denoiser's tensors alone, then a misleading name."""
    if not subject.has_weights:
        return None
    for mutation in subject.rng.sample(_HARMLESS, subject.rng.randint(2, 4)):
        expected = mutation(subject)
        if expected is not None:
            subject.expected = expected
    return folder_renamed(subject)


MUTATIONS: dict[str, Mutation] = {
    function.__name__: function
    for function in (
        field_dropped, field_nulled, field_renamed, field_retyped, unknown_fields, config_missing,
        original_config_missing, weights_missing, index_missing, index_corrupt, config_corrupt, pipeline_class_wrong,
        pipeline_class_removed, version_mixed, header_against_config, transformer_swapped, transformer_foreign,
        vae_swapped, vae_missing, denoiser_missing, folder_renamed, extra_files, null_keys, boundary_on_one_expert,
        boundary_lost, false_image_dim, foreign_library, prefix_changed, tensors_missing, fewer_layers, in_cache,
        weights_corrupt, weights_pickled, shard_missing, variant_files, quantized, all_in_one, two_expert_files,
        several_at_once,
    )
}  # fmt: skip
