"""A configuration has one meaning and a bounded cost, or a finding that says why not."""

from __future__ import annotations

import codecs
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_compat.protocol import errors
from wan_compat.supervisor.inspection import parse_json, read_facts
from wan_compat.supervisor.inspection.json_document import MAX_JSON_BYTES, MAX_JSON_DEPTH, MAX_JSON_VALUES, is_document

UNUSABLE = {
    "empty": (b"", "json_corrupt"),
    "not json": (b"{", "json_corrupt"),
    "python": (b"{'a': 1}", "json_corrupt"),
    "comment": (b'{"a": 1} // b', "json_corrupt"),
    "two documents": (b"{}{}", "json_corrupt"),
    "not utf-8": (b'{"a": "\xff"}', "json_corrupt"),
    "half a character": (rb'{"a": "\ud83e"}', "json_corrupt"),
    "half a character in a key": (rb'{"\udfff": 1}', "json_corrupt"),
    "halves in the wrong order": (rb'{"a": "\udd8a\ud83e"}', "json_corrupt"),
    "half a character after a backslash": (rb'{"a": "\ud83e\\\udd8a"}', "json_corrupt"),
    "a list": (b"[1]", "json_not_an_object"),
    "null": (b"null", "json_not_an_object"),
    "a text": (b'"{}"', "json_not_an_object"),
    "duplicate key": (b'{"a": 1, "b": 2, "a": 1}', "json_duplicate_key"),
    "duplicate key deep inside": (b'{"x": [{"a": {"b": 1, "b": 2}}]}', "json_duplicate_key"),
    "duplicate key by escape": (rb'{"a": 1, "\u0061": 2}', "json_duplicate_key"),
    "65 bits": (b'{"a": 18446744073709551616}', "out_of_range"),
    "minus 65 bits": (b'{"a": -9223372036854775809}', "out_of_range"),
    "100,000 digits": (b'{"a": ' + b"9" * 100_000 + b"}", "out_of_range"),
    "deep": (b'{"a":' * 33 + b"1" + b"}" * 33, "json_too_large"),
    "very deep": (b'{"a":' + b"[" * 40_000 + b"]" * 40_000 + b"}", "json_too_large"),
    "many values": (b'{"a":[' + b"0," * MAX_JSON_VALUES + b"0]}", "json_too_large"),
    "many ends": (b'{"a":"' + b"]" * (MAX_JSON_VALUES + 1) + b'"}', "json_too_large"),
    "large": (b'{"a": "' + b"x" * MAX_JSON_BYTES + b'"}', "json_too_large"),
    "wide characters": (b'{"a": "' + "\U0001f98a".encode() * 300_000 + b'"}', "json_too_large"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "lfs_pointer"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_document_is_a_finding_and_hides_nothing_else(tmp_path, case):
    raw, code = UNUSABLE[case]
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_bytes(raw)
    (tmp_path / "model_index.json").write_text("{}")
    facts = read_facts(str(tmp_path))
    assert [(problem.code, problem.path, problem.component) for problem in facts.problems] == [
        (code, "vae/config.json", "vae")
    ]
    assert set(facts.documents) == {"model_index.json"}
    json.dumps(facts.problems[0].to_json()).encode()
    if code != "lfs_pointer":
        with pytest.raises(errors.ModelCorrupt):
            parse_json(raw, "config.json")


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a": 18446744073709551615, "b": -9223372036854775808}', {"a": 2**64 - 1, "b": -(2**63)}),
        (rb'{"a": "\ud83e\udd8a \\ud83e"}', {"a": "\U0001f98a \\ud83e"}),
        (b'{"a":' * MAX_JSON_DEPTH + b"1" + b"}" * MAX_JSON_DEPTH, None),
        (b' \n{"a": 1e-3}\n', {"a": 1e-3}),
    ],
)
def test_document_within_the_limits_is_read(raw, value):
    read = parse_json(raw, "config.json")
    assert value is None or read == value


@pytest.mark.parametrize(
    "raw",
    [codecs.BOM_UTF8 + b'{"a": "\xc3\xa9"}', '{"a": "é"}'.encode("utf-16"), codecs.BOM_UTF16_BE + '{"a": "é"}'.encode("utf-16-be")],
)  # fmt: skip
def test_byte_order_mark_is_an_error_that_does_not_hide_the_content(tmp_path, raw):
    (tmp_path / "config.json").write_bytes(raw)
    facts = read_facts(str(tmp_path))
    assert [problem.code for problem in facts.problems] == ["json_byte_order_mark"]
    assert facts.documents["config.json"] == {"a": "é"}
    with pytest.raises(errors.ModelCorrupt, match="byte order mark"):
        parse_json(raw, "config.json")


@pytest.mark.parametrize(
    ("raw", "severity"),
    [(b'{"a": NaN}', "warning"), (b'{"a": -Infinity}', "info"), (b'{"a": 1e999}', "info"), (b'{"a": [Infinity, NaN]}', "warning")],
)  # fmt: skip
def test_constants_that_only_python_reads_are_noted(tmp_path, raw, severity):
    (tmp_path / "scheduler_config.json").write_bytes(raw)
    facts = read_facts(str(tmp_path))
    assert [(problem.code, problem.severity) for problem in facts.problems] == [("json_constant", severity)]
    assert "a" in facts.documents["scheduler_config.json"]
    assert "a" in parse_json(raw, "x.json")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model_index.json", True),
        ("a/b/c/config.json", True),
        ("transformer/diffusion_pytorch_model.safetensors.index.json", True),
        ("transformer/diffusion_pytorch_model.safetensors.index.fp16.json", True),
        ("adapter_config.json", True),
        ("tokenizer/tokenizer.json", False),
        ("tokenizer/vocab.json", False),
        ("pytorch_model.bin.index.json", False),
        ("my_config.json", False),
    ],
)
def test_documents_are_known_by_name(path, expected):
    assert is_document(path) is expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(JSON, st.booleans())
def test_what_is_accepted_means_what_python_reads(value, ascii_only):
    raw = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        read = parse_json(raw, "config.json")
    except errors.ModelCorrupt:
        return
    assert json.dumps(read) == json.dumps(json.loads(raw))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ud83e019eENaIfty-+. ', max_size=60).map(str.encode))
def test_any_bytes_are_a_document_or_a_typed_error(raw):
    try:
        json.dumps(parse_json(raw, "config.json"), ensure_ascii=False).encode()
    except errors.ModelCorrupt as error:
        assert "config.json" in error.message
