"""Which names a line may use, and what a text in a cell means."""

from __future__ import annotations

from typing import Any

import pytest

from wan_compat.policies.batch.fields import ALIASES, PATHS, REQUEST_FIELDS, settle_names
from wan_compat.policies.batch.items import Line
from wan_compat.protocol.values import GenerationRequest
from wan_compat.supervisor.provenance import NOT_REPEATED


def settled(**fields: Any) -> dict[str, Any]:
    found, problems = settle_names(Line(3, fields))
    assert problems == []
    return found


def problem(**fields: Any) -> tuple[str, str]:
    _, problems = settle_names(Line(3, fields))
    assert len(problems) == 1 and problems[0].line == 3
    return problems[0].field, problems[0].why


def test_every_field_is_one_of_a_request_and_none_chooses_what_a_job_may_do() -> None:
    assert set(GenerationRequest.model_fields) >= REQUEST_FIELDS
    assert {"model", "timeout_s", "phase_timeouts"} == REQUEST_FIELDS & NOT_REPEATED  # the others belong to a run
    assert PATHS <= REQUEST_FIELDS and set(ALIASES.values()) <= REQUEST_FIELDS | {"seeds"}


CELLS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"negative": "blur", "steps": "4", "frames": 9}, {"negative_prompt": "blur", "num_inference_steps": "4", "num_frames": 9}),
    ({"size": "832x480"}, {"width": 832, "height": 480}),
    ({"seeds": "4"}, {"seeds": 4}),
    ({"seeds": "1, 2;3 4"}, {"seeds": [1, 2, 3, 4]}),
    ({"seeds": [7]}, {"seeds": [7]}),
    ({"references": "a.png; b.png"}, {"references": ("a.png", "b.png")}),
    ({"lora": "a.safetensors:0.5@high; b.safetensors"}, {"loras": [
        {"path": "a.safetensors", "weight": 0.5, "expert": "high"}, {"path": "b.safetensors", "weight": 1.0, "expert": None},
    ]}),
    ({"loras": [{"path": "a", "weight": 2}]}, {"loras": [{"path": "a", "weight": 2}]}),
    ({"quantize": "transformer=int8"}, {"quantize": {"transformer": "int8"}}),
    ({"negative_prompt": None, "size": None}, {"negative_prompt": None, "width": None, "height": None}),
]  # fmt: skip


@pytest.mark.parametrize(("said", "meant"), CELLS)
def test_a_cell_means(said: dict[str, Any], meant: dict[str, Any]) -> None:
    assert settled(**said) == meant


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"sead": 1}, "sead", "'seed' is meant"),
    ({"Prompt": "x"}, "Prompt", "'prompt' is meant"),
    ({"num-frames": 1}, "num-frames", "'num_frames' is meant"),
    ({"zzzzzz": 1}, "zzzzzz", "docs/batch.md"),
    ({"mode": "trust"}, "mode", "for the command line"),
    ({"trust_remote_code": True}, "trust_remote_code", "for the command line"),
    ({"\x1b[31mred": 1}, "\\x1b[31mred", "is unknown"),
    ({"frames": 5, "num_frames": 9}, "num_frames", "the same as frames"),
    ({"size": "832"}, "size", "WIDTHxHEIGHT"),
    ({"size": "8x8", "width": 8}, "width", "said by size"),
    ({"prompt": True}, "prompt", "needs quotes"),
    ({"seed": True}, "seed", "must not be true"),
    ({"prompt": ["a"]}, "prompt", "one value"),
    ({"seeds": "four"}, "seeds", "number of videos"),
    ({"seeds": [True]}, "seeds", "number of videos"),
    ({"seeds": "9" * 30}, "seeds", "number of videos"),
    ({"lora": "a:99"}, "lora", "outside"),
    ({"lora": 3}, "lora", "FILE"),
    ({"image": ""}, "image", "not the name of a file"),
    ({"image": "a\0b"}, "image", "not the name of a file"),
]


@pytest.mark.parametrize(("said", "field", "why"), WRONG, ids=[repr(case[0])[:40] for case in WRONG])
def test_what_cannot_be_understood_is_named(said: dict[str, Any], field: str, why: str) -> None:
    found = problem(**said)
    assert found[0] == field and why in found[1]
