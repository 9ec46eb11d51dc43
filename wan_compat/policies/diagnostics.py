"""Diagnostics: the report about one model on one machine, and what a person should read of it.

`ModelDiagnostics` is the document; it is redacted before it is built (`redaction.py`), so that no way of printing it
can leak more than another.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

SCHEMA_VERSION = 1

MAX_NAME_CHARS = 120

# What every report has, with the values of a machine and a model about which nothing is known. Memory in MB.
DIAGNOSTIC_TEMPLATE: Mapping[str, Mapping[str, Any]] = {
    "system_info": {
        "gpu": None,
        "vram_total": 0,
        "vram_available": 0,
        "python_version": None,
        "torch_version": None,
        "diffusers_version": None,
    },
    "model_analysis": {
        "architecture_detected": "unknown",
        "has_model_index": False,
        "model_index_valid": False,
        "components_found": [],
        "vae_dimensions": 0,
        "custom_attributes": {},
    },
    "pipeline_attempt": {
        "attempted_pipeline": None,
        "pipeline_available": False,
        "trust_remote_code": False,
        "remote_code_fetched": False,
        "load_success": None,  # None: loading was not tried
        "error_type": None,
    },
}


@dataclasses.dataclass
class ModelDiagnostics:
    """One report. `timestamp` is ISO 8601 in UTC; the three dictionaries have the keys of DIAGNOSTIC_TEMPLATE."""

    model_path: str
    model_name: str
    timestamp: str
    system_info: dict[str, Any]
    model_analysis: dict[str, Any]
    pipeline_attempt: dict[str, Any]
    errors: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    recommendations: list[str] = dataclasses.field(default_factory=list)
    fallback: dict[str, Any] = dataclasses.field(default_factory=dict)  # `parts` and `alternatives`, where asked for

    def to_json(self) -> str:
        """Return the document. Non-ASCII is escaped, so that no terminal control survives in it."""
        document = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        return json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False)


def from_template(section: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section with every key of the template, filled with what is known."""
    return copy.deepcopy(dict(DIAGNOSTIC_TEMPLATE[section])) | dict(known)


def file_name(model_name: str) -> str:
    """Return the report's file name: `org/Name` becomes `org_Name_compat.json`; never hidden, never a path.

    Two models whose names differ only in odd characters share a report: it says in `model_name` whose it is.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", model_name).strip("._-")[:MAX_NAME_CHARS]
    return f"{safe or 'model'}_compat.json"


def summarize(diagnostics: ModelDiagnostics) -> str:
    """Return what a person needs, short enough to be pasted into an issue: what it is, what is wrong, what to do."""
    system, analysis = diagnostics.system_info, diagnostics.model_analysis
    attempt = diagnostics.pipeline_attempt
    pipeline = attempt["attempted_pipeline"] or "no pipeline of diffusers"
    lines = [
        f"Model:      {diagnostics.model_name}",
        f"Detected:   {analysis['architecture_detected']}"
        + (f" ({analysis['variant']})" if analysis.get("variant") else "")
        + f", {pipeline}",
        f"Machine:    {system['gpu'] or 'no GPU'}"
        + (f", {system['vram_available']} of {system['vram_total']} MB free" if system["gpu"] else "")
        + (f", {system['ram_available']} of {system['ram_total']} MB of RAM free" if "ram_total" in system else ""),
        f"Versions:   Python {system['python_version']}, torch {system['torch_version'] or 'missing'}, "
        f"diffusers {system['diffusers_version'] or 'missing'}",
    ]
    if attempt["load_success"] is not None:
        outcome = "succeeded" if attempt["load_success"] else f"failed ({attempt['error_type']})"
        lines.append(f"Loading:    {outcome}")
    parts = [
        f"{part['name']}: {'usable' if part['usable'] else 'NOT usable'}, {part['reason']}"
        for part in diagnostics.fallback.get("parts", ())
    ]
    others = [f"{other['model_name']}: {other['reason']}" for other in diagnostics.fallback.get("alternatives", ())]
    for title, texts in (
        ("Errors", diagnostics.errors),
        ("Warnings", diagnostics.warnings),
        ("Parts, each loaded by itself", parts),
        ("Models that could be used instead", others),
        ("What to do", diagnostics.recommendations),
    ):
        if texts:
            lines += ["", f"{title}:"]
            lines += [f"  {number}. {text}" for number, text in enumerate(texts, 1)]
    if not diagnostics.errors:
        lines += ["", "Nothing stands in the way of running it here."]
    return "\n".join(lines)
