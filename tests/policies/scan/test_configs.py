"""Configurations are linted for what makes a library run or fetch something; ordinary ones say nothing."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_compat.policies.scan.configs import MAX_JSON_BYTES, read_json, read_template, read_yaml
from wan_compat.policies.scan.notebook import read_notebook


def rules(value, path="config.json"):
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return {item.rule for item in read_json(raw, path)}


CASES = [
    ({"auto_map": {"AutoModel": "m.M"}}, "config-auto-map"),
    ({"a": [{"auto_map": {"AutoModel": "m.M"}}]}, "config-auto-map"),
    ({"trust_remote_code": True}, "config-remote-code"),
    ({"custom_pipeline": "a/b"}, "config-pipeline"),
    ({"_attn_implementation_internal": "a/kernel"}, "config-kernel"),
    ({"attn_implementation": "a/kernel:f"}, "config-kernel"),
    ({"x": "../../etc/passwd"}, "config-path"),
    ({"weight_map": {"a": "../b.safetensors"}}, "config-path"),
    ({"_name_or_path": "/home/me/model"}, "config-local-path"),
    ({"pretrained_model_name_or_path": "a/b"}, "config-repository"),
    ({"x": "https://example.org/x"}, "config-url"),
    ({"chat_template": "{{ ''.__class__ }}"}, "template-dangerous"),
    (b'{"a": 1, "a": 2}', "config-duplicate-key"),
    (b'{"a": ', "config-corrupt"),
    (b"\xff\xfe{}", "config-corrupt"),
    (b"[" * 200_000, "config-corrupt"),
    (b'{"\\u0061uto_map": {"x": "y"}}', "config-escaped-letters"),
    (b'{"\\u0061uto_map": {"x": "y"}}', "config-auto-map"),
    (b'{"auto_map": 1, "a": "' + b"x" * MAX_JSON_BYTES + b'"}', "config-auto-map"),
]


@pytest.mark.parametrize(("value", "rule"), CASES)
def test_what_a_configuration_asks_for_is_named(value, rule):
    assert rule in rules(value)


def test_pieces_of_text_in_a_vocabulary_are_no_paths() -> None:
    assert rules({"vocab": [["../", 0], ["http://www.", 1]]}, "tokenizer/tokenizer.json") == set()


def test_a_model_index_that_names_code_is_named():
    index = {"_class_name": ["my_pipeline", "MyPipeline"], "vae": ["vae_module", "MyVae"], "unet": [None, None]}
    assert rules(index, "model_index.json") == {"config-pipeline", "config-library"}
    assert rules({"vae": ["diffusers", "AutoencoderKLWan"]}, "model_index.json") == set()


@pytest.mark.parametrize(
    "value",
    [
        {"auto_map": None, "trust_remote_code": False, "custom_pipeline": None},
        {"_name_or_path": "google/umt5-xxl", "attn_implementation": "sdpa"},
        {"model": {"vocab": [["▁", -1.5], ["..", -2], ["a/b", 0]]}},
        {"x": "\\u escapes in a text", "é": "läuft"},
        {"chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"},
    ],
)
def test_ordinary_configurations_say_nothing(value):
    assert rules(value) == set()


@pytest.mark.parametrize("escaped", [b'{"a": "\\u00e9\\u4e2d"}', b'{"a": "\\\\u0061"}', b'{"a": "\\n\\t"}'])
def test_escapes_that_writers_of_json_use_are_not_suspicious(escaped):
    assert rules(escaped) == set()


def test_lines_are_told():
    found = read_json(b'{\n "a": 1,\n "auto_map": {"x": "m.M"}\n}', "config.json")
    assert [(item.rule, item.line) for item in found] == [("config-auto-map", 3)]


@pytest.mark.parametrize(
    "text",
    [
        "{{ self.__init__ }}",
        "{{ x|attr('a') }}",
        "{% set x = cycler %}",
        "{{ lipsum.f }}",
        "{{ ()['\\x5f\\x5fclass'] }}",
        "{% import 'os' as o %}{{ o.popen('id') }}",
    ],
)
def test_templates_that_reach_for_more_are_named(text):
    assert {item.rule for item in read_template(text)} & {"template-dangerous", "template-includes"}


def test_yaml_tags_that_make_objects_are_named_and_nothing_is_built():
    found = read_yaml(b"a: 1\nb: !!python/object/apply:os.system ['id']\nauto_map: x\ntrust_remote_code: false\n")
    assert [(item.rule, item.line) for item in found] == [("config-yaml-code", 2), ("config-auto-map", 3)]


def test_cells_of_a_notebook_are_python_with_a_shell():
    cells = [{"cell_type": "code", "source": ["!curl x | sh\n", "import subprocess\n"]}, {"cell_type": "markdown"}]
    found = {item.rule for item in read_notebook(json.dumps({"cells": cells}).encode())}
    assert found == {"script-in-notebook", "python-process"}
    assert read_notebook(b'{"cells": [{"cell_type": "code", "source": "\\ud800"}]}') is not None


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,\\u0aé', max_size=80).map(str.encode))
def test_any_bytes_are_read_to_an_end(raw):
    read_json(raw, "model_index.json")
    read_yaml(raw)
    read_notebook(raw)


EXPENSIVE = {
    "many keys": b"{" + b",".join(b'"k%d":"/home/x/%d"' % (n, n) for n in range(100_000)) + b"}",
    "many codes": b"[" + b",".join(b'{"auto_map":%d}' % n for n in range(1, 60_000)) + b"]",
    "open marks": b'{"chat_template": "' + b"{{ " * 1_000_000 + b'"}',
    "open marks of statements": b'{"chat_template": "' + b"{% " * 1_000_000 + b'"}',
    "backslashes": b'{"a": "' + b"\\\\" * 2_000_000 + b'"}',
    "escapes": b'{"a": "' + b"\\\\u0061" * 500_000 + b'"}',
}


@pytest.mark.parametrize("name", EXPENSIVE)
def test_reading_takes_time_in_proportion_to_the_bytes(name):
    started = time.process_time()
    found = read_json(EXPENSIVE[name], "config.json")
    assert time.process_time() - started < 3
    assert len(found) <= 100


def test_a_configuration_that_is_too_large_to_be_read_is_said_and_a_tokenizer_is_not():
    large = b'{"a": "' + b"x" * MAX_JSON_BYTES + b'"}'
    assert {item.rule for item in read_json(large, "config.json")} == {"scan-limit"}
    assert read_json(large, "tokenizer/tokenizer.json") == []
    with_template = large[:-1] + b', "chat_template": "{{ x.__class__ }}"}'
    assert {item.rule for item in read_json(with_template, "tokenizer/tokenizer.json")} == {"scan-limit"}
