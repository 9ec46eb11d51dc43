"""What --lora and --quantize say."""

from __future__ import annotations

import pytest

from wan_compat.policies.sources.written import parse_loras, parse_quantize
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.supervisor.cli.parts_options import flags_of, parts_fields


@pytest.mark.parametrize(
    ("text", "path", "weight", "expert"),
    [
        ("a.safetensors", "a.safetensors", 1.0, None),
        ("a.safetensors:0.8", "a.safetensors", 0.8, None),
        ("a.safetensors@high", "a.safetensors", 1.0, "high"),
        ("dir/a.safetensors:-.5@low", "dir/a.safetensors", -0.5, "low"),
        ("C:/odd:name@home.safetensors", "C:/odd:name@home.safetensors", 1.0, None),
        ("a@high:1", "a@high", 1.0, None),
    ],
)
def test_lora_has_a_path_a_weight_and_an_expert(text, path, weight, expert):
    assert parse_loras([text]) == [{"path": path, "weight": weight, "expert": expert}]


def test_mistakes_are_told():
    for call, words in (
        (lambda: parse_loras(["a:11"]), r"outside -10\.\.10"),
        (lambda: parse_loras([""]), "--lora is empty"),
        (lambda: parse_quantize(["transformer"]), "is not understood"),
        (lambda: parse_quantize(["transformer=int7"]), "is not understood"),
        (lambda: parse_quantize(["vae=int8", "vae=fp8"]), "names vae twice"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            call()


def test_what_was_left_out_is_no_field():
    assert parts_fields({"components": None, "vae": "v"}, None, []) == {"vae": "v"}
    assert parts_fields({}, ["a:2"], ["transformer=quanto:int4"])["quantize"] == {"transformer": "quanto:int4"}
    assert flags_of({"transformer_2": "a b", "vae": None}) == " --transformer-2 'a b'"
