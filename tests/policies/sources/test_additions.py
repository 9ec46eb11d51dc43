"""Fewer bits by name: which backend, and what is said where there is none."""

from __future__ import annotations

import pytest

from tests.assets.corpus.tensors import original_names
from tests.policies.detection import drafts as d
from wan_compat.policies.models import ModelDecision
from wan_compat.policies.sources.additions import require_formats, with_quantization
from wan_compat.policies.sources.compose import Given, compose
from wan_compat.protocol.errors import EnvironmentLacks, InvalidRequest
from wan_compat.protocol.values import ComponentSpec, PipelineSpec


def decision(**transformer):
    parts = (("transformer", "diffusers", "WanTransformer3DModel"), ("vae", "diffusers", "AutoencoderKLWan"))
    components = tuple(
        ComponentSpec(name=name, library=library, class_name=kind, subfolder=name, dtype="float32", **(transformer if name == "transformer" else {}))
        for name, library, kind in parts
    )  # fmt: skip
    pipeline = PipelineSpec(pipeline_class="WanPipeline", components=components, threads=1)
    return ModelDecision(pipeline, (), {}, {}, 0, ())


@pytest.mark.parametrize(
    ("text", "installed", "backend"),
    [
        ("int8", {"torchao", "optimum-quanto"}, "torchao"),
        ("int8", {"optimum-quanto"}, "quanto"),
        ("quanto:int8", {"torchao", "optimum-quanto"}, "quanto"),
        ("int4", {"torchao", "optimum-quanto"}, "quanto"),
    ],
)
def test_first_installed_backend_that_has_the_kind_is_taken(text, installed, backend):
    made = with_quantization(decision(), "m", {"transformer": text}, installed)
    (component,) = [item for item in made.pipeline.components if item.quantization]
    assert (component.name, component.quantization.backend) == ("transformer", backend)
    assert any(backend in reason for reason in made.reasons)


@pytest.mark.parametrize(
    ("wanted", "installed", "error", "words"),
    [
        ({"transformer": "int8"}, (), EnvironmentLacks, "needs torchao or optimum-quanto"),
        ({"transformer": "nf4"}, {"bitsandbytes"}, EnvironmentLacks, "NVIDIA GPU only"),
        ({"transformer": "torchao:int4"}, {"torchao"}, InvalidRequest, "torchao makes no int4"),
        ({"vae": "int8"}, {"torchao"}, InvalidRequest, "no such part"),
        ({"transformer_2": "int8"}, {"torchao"}, InvalidRequest, "no such part"),
    ],
)
def test_what_cannot_be_made_smaller_says_why(wanted, installed, error, words):
    with pytest.raises(error, match=words):
        with_quantization(decision(), "m", wanted, installed)


def test_part_from_a_single_file_stays_as_it_is():
    file = Given(d.one_file("x.safetensors", original_names("wan-t2v-14b")), "the file")
    source = compose(d.diffusers("wan-t2v-14b"), [file]).facts.sources["transformer"]
    with pytest.raises(InvalidRequest, match="comes from a single file"):
        with_quantization(decision(source=source), "m", {"transformer": "int8"}, {"torchao"})


def test_gguf_without_its_package_names_the_command_that_installs_it():
    file = Given(d.one_file("x.gguf", original_names("wan-t2v-14b"), "Q4_K"), "the file")
    facts = compose(d.diffusers("wan-t2v-14b"), [file]).facts
    with pytest.raises(EnvironmentLacks) as lacking:
        require_formats(facts, "x.gguf", {"torchao"})
    assert lacking.value.exit_code == 3 and lacking.value.fixes[0] == "wan-compat install-deps x.gguf --with gguf"
    require_formats(facts, "x.gguf", {"gguf"})
