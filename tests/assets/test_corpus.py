"""The corpus is what it says: names and shapes of the real classes, in files of the real size that take no space."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.assets.corpus.expected import EXPECTED
from tests.assets.corpus.lookalikes import LOOKALIKES
from tests.assets.corpus.repositories import BUILDERS, build_sharded_14b
from tests.assets.corpus.tables import compress, expand, recorded_names, recorded_tensors
from wan_compat.policies.variants import VARIANTS

ENTRIES = json.loads((Path(__file__).parent / "variants.json").read_text())


def test_every_entry_of_the_data_has_a_builder_and_an_expectation():
    names = {entry["id"] for entry in ENTRIES}
    assert len(names) == len(ENTRIES) == 105
    assert names <= BUILDERS.keys() | LOOKALIKES.keys()
    assert EXPECTED.keys() == BUILDERS.keys() | LOOKALIKES.keys()


def test_expectations_and_vocabulary_know_the_same_variants():
    wanted = {expected.variant for expected in EXPECTED.values() if expected.variant}
    assert wanted <= VARIANTS.keys()
    for expected in EXPECTED.values():
        if expected.variant:
            variant = VARIANTS[expected.variant]
            assert variant.architecture_type in expected.types, expected.variant
            assert variant.version in expected.versions, expected.variant
            assert variant.pipeline_class in expected.pipelines, expected.variant


def test_every_entry_of_the_data_names_its_sources():
    assert all(entry["sources"] for entry in ENTRIES)


@pytest.mark.parametrize("name", [*BUILDERS, *LOOKALIKES])
def test_entry_takes_less_than_a_megabyte(name, tmp_path):
    (BUILDERS | LOOKALIKES)[name](tmp_path / "model")
    used = sum(path.lstat().st_blocks * 512 for path in tmp_path.rglob("*"))
    assert used < 1 << 20


def test_sharded_a14b_has_the_published_files_and_bytes(tmp_path):
    folder = build_sharded_14b(tmp_path)
    for expert in ("transformer", "transformer_2"):
        shards = list((folder / expert).glob("*.safetensors"))
        assert len(shards) == 12
        assert sum(path.stat().st_size for path in shards) == pytest.approx(57_153_966_336, rel=1e-4)


def test_patterns_expand_to_what_they_were_made_from():
    tensors = {"a.0.b.1.weight": (2, 3), "a.0.b.3.weight": (2, 3), "a.1.b.1.weight": (2, 3), "c": (), "a.7.bias": (1,)}
    assert expand(compress(tensors)) == tensors
    for name in recorded_names():
        assert expand(compress(recorded_tensors(name))) == recorded_tensors(name)


# torch and diffusers stay out of this process: other tests of this session must not find them imported.
_COMPARE = """
import json, warnings
warnings.simplefilter("ignore")
import torch
from diffusers.loaders import single_file_utils as loaders
from tests.assets.corpus import record
from tests.assets.corpus.tables import expand, recorded_tensors
from tests.assets.corpus.tensors import animate_2_original, original_names

wrong = []
# One of each class; `python -m tests.assets.corpus.record` makes all of them anew.
for name in (
    "wan-t2v-1.3b", "wan-vace-1.3b", "wan-animate-14b", "wan-animate-2-14b", "skyreels-df-1.3b", "skyreels-i2v-1.3b",
    "anyflow-1.3b", "anyflow-far-1.3b", "vae-wan2.1", "vae-wan2.2", "transformer-cosmos", "transformer-ltx",
):
    if expand(record.record_diffusers(name)["tensors"]) != recorded_tensors(name):
        wrong.append(name)
for name in ("umt5-xxl", "clip-vision-projection"):
    if expand(record.record_transformers(name)["tensors"]) != recorded_tensors(name):
        wrong.append(name)

def converted(convert, tensors):
    state = convert({name: torch.empty(shape, device="meta") for name, shape in tensors.items()})
    return {name: tuple(tensor.shape) for name, tensor in state.items()}

for name in ("wan-t2v-1.3b", "wan-i2v-14b", "wan-i2v-a14b", "wan-ti2v-5b", "wan-vace-1.3b", "wan-vace-14b", "wan-fun-14b-control"):
    if converted(loaders.convert_wan_transformer_to_diffusers, original_names(name)) != recorded_tensors(name):
        wrong.append(name)
# Blur kernels are buffers that diffusers' class makes itself.
animate = converted(loaders.convert_wan_transformer_to_diffusers, recorded_tensors("original-animate"))
if {name: shape for name, shape in animate.items() if not name.endswith(".kernel")} != recorded_tensors("wan-animate-14b"):
    wrong.append("animate")
if converted(loaders.convert_wan_animate_2_transformer_to_diffusers, animate_2_original()) != recorded_tensors("wan-animate-2-14b"):
    wrong.append("animate-2")
if converted(loaders.convert_wan_vae_to_diffusers, recorded_tensors("original-vae-wan2.1")) != recorded_tensors("vae-wan2.1"):
    wrong.append("vae 2.1")
if original_names("wan-t2v-14b") != recorded_tensors("original-wan"):
    wrong.append("WanModel")
print(json.dumps(wrong))
"""


@pytest.mark.long
def test_tables_are_those_of_the_installed_classes_and_original_names_what_diffusers_converts(repository):
    environment = {
        "PYTHONPATH": str(repository),
        "PATH": "/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-c", _COMPARE]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []
