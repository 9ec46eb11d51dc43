"""Mutations of the index and of the configurations: fields, classes, versions, broken JSON.

What the tensors are does not change, so that almost every expectation stays as it was.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

from tests.assets.corpus.expected import Expected
from tests.assets.corpus.files import write_json
from tests.assets.corpus.lookalikes import LOOKALIKES
from tests.assets.corpus.subject import (
    DECIDED_BY_A_FIELD,
    DECIDED_BY_INDEX_CLASS,
    EXPERTS,
    ORIGINALS,
    SINGLE,
    Subject,
    loosen,
    only,
)
from wan_compat.policies.variants import VARIANTS


def _fields(document: dict[str, Any]) -> list[str]:
    return [name for name in document if not name.startswith("_") and name not in ("architectures", "auto_map")]


def _change_fields(subject: Subject, change: Callable[[dict[str, Any], str], None]) -> Expected | None:
    """Change one to three fields of the denoiser's configuration, the same in both experts."""
    if not subject.has_weights or subject.name in DECIDED_BY_A_FIELD:
        return None
    fields = _fields(json.loads((subject.denoisers[0] / "config.json").read_text()))
    chosen = subject.rng.sample(fields, min(len(fields), subject.rng.randint(1, 3)))
    for folder in subject.denoisers:
        document = json.loads((folder / "config.json").read_text())
        for field in chosen:
            if field in document:  # an earlier mutation may have changed one expert only
                change(document, field)
        write_json(folder / "config.json", document)
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


_DISAGREEING = {
    "in_channels": (16, 36, 48), "out_channels": (16, 48), "num_layers": (30, 40), "num_attention_heads": (12, 24, 40),
    "ffn_dim": (8960, 13824, 14336), "image_dim": (None, 1280), "added_kv_proj_dim": (None, 1536, 5120),
    "in_dim": (16, 36, 48), "out_dim": (16, 48), "dim": (1536, 3072, 5120), "pos_embed_seq_len": (None, 514),
    "model_type": ("t2v", "i2v", "ti2v", "flf2v"),
}  # fmt: skip


def header_against_config(subject: Subject) -> Expected | None:
    """The configuration is that of another size or task; the tensors are what they are."""
    if not subject.has_weights or subject.is_lookalike or subject.name in DECIDED_BY_A_FIELD:
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


@only(*EXPERTS[:2], "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "IPostYellow/TurboWan2.2-I2V-A14B-Diffusers")
def false_image_dim(subject: Subject) -> Expected | None:
    """The official I2V-A14B once said image_dim 1280 without having the tensors."""
    for folder in subject.denoisers:
        subject.edit(folder / "config.json", lambda document: document.update(image_dim=1280, added_kv_proj_dim=5120))
    return subject.expected


def config_missing(subject: Subject) -> Expected | None:
    if not subject.has_weights or subject.index is None:
        return None
    for folder in subject.denoisers:
        (folder / "config.json").unlink()
    return subject.expected


@only(*ORIGINALS)
def original_config_missing(subject: Subject) -> Expected | None:
    """Without its config.json a folder of the original layout is a folder of weights: told by them alone."""
    if not subject.has_weights or "original" not in subject.expected.layouts or subject.name in DECIDED_BY_A_FIELD:
        return None
    for folder in subject.denoisers:
        (folder / "config.json").unlink()
    return dataclasses.replace(loosen(subject.expected), layouts=("original", "component", "single_file", "unknown"))


def config_corrupt(subject: Subject) -> Expected | None:
    if not subject.has_weights or subject.index is None:
        return None
    for folder in subject.denoisers:
        path = folder / "config.json"
        path.write_bytes(_corrupted(path.read_bytes(), subject.rng))
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
    if any(word in subject.name for word in DECIDED_BY_INDEX_CLASS):
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
    if any(word in subject.name for word in DECIDED_BY_INDEX_CLASS):
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


@only(*SINGLE, *LOOKALIKES)
def boundary_on_one_expert(subject: Subject) -> Expected | None:
    """A converter's mistake: diffusers' own script once wrote a boundary for Wan 2.1."""
    if subject.index is None:
        return None
    value = subject.rng.choice([0.875, 0.9])
    subject.edit(subject.index, lambda document: document.update(boundary_ratio=value, transformer_2=[None, None]))
    return subject.expected


@only(*EXPERTS)
def boundary_lost(subject: Subject) -> Expected | None:
    if subject.index is None:
        return None
    if subject.rng.random() < 0.5:
        subject.edit(subject.index, lambda document: document.pop("boundary_ratio"))
    else:
        subject.edit(subject.index, lambda document: document.update(boundary_ratio=None))
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
