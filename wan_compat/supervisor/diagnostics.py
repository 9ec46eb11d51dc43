"""DiagnosticCollector: everything about one model on this machine in one redacted file that can be sent to somebody.

    facts, architecture, findings   as `check` has them
    the machine                     versions from metadata, memory, GPUs by NVML; nothing is started
    the attempt                     what happened when it was loaded or run, if it was

Reading never fails for what a model contains; writing is whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wan_compat._version import __version__
from wan_compat.policies.diagnostics import ModelDiagnostics, file_name, from_template, summarize
from wan_compat.policies.findings import FINDINGS, Severity
from wan_compat.policies.redaction import redact, redact_text
from wan_compat.protocol.errors import OutputNotWritable, WanCompatError
from wan_compat.protocol.results import VideoGenerationResult
from wan_compat.supervisor.check import ModelReport, check_model
from wan_compat.supervisor.installed import find_version
from wan_compat.supervisor.outputs import prepare_document

_MEGABYTE = 1_000_000
_MAX_EVIDENCE = 50


class DiagnosticCollector:
    """Collects, writes and summarises. Making one touches nothing: the folder is made when a report is written.

    Args:
        diagnostics_dir: Where reports go.
    """

    def __init__(self, diagnostics_dir: str | os.PathLike[str] = "diagnostics") -> None:
        self.diagnostics_dir = Path(diagnostics_dir)

    def collect_model_diagnostics(self, model_path: str, load_attempt_result: Any = None) -> ModelDiagnostics:
        """Return what is known about a model here.

        Args:
            model_path: As `check` takes it.
            load_attempt_result: What loading or generating gave: a VideoGenerationResult, the exception it raised, a
                mapping of `pipeline_attempt` keys, or None where nothing was tried.

        Raises:
            ModelNotFound: There is nothing at `model_path`.
        """
        return diagnostics_of(check_model(model_path), load_attempt_result)

    def write_compatibility_report(self, model_name: str, diagnostics: ModelDiagnostics) -> str:
        """Write `<diagnostics_dir>/<safe model name>_compat.json`, replacing an older one; return its path.

        Raises:
            OutputNotWritable, DiskExceeded: The folder cannot be made or written.
        """
        try:
            self.diagnostics_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputNotWritable(
                f"the folder {str(self.diagnostics_dir)!r} cannot be made: {error.strerror}",
                hint="name another folder with --output",
            ) from error
        with prepare_document(self.diagnostics_dir / file_name(model_name), overwrite=True) as target:
            with open(target.part_path, "w", encoding="ascii") as file:
                file.write(diagnostics.to_json() + "\n")
            target.commit()
            return target.path

    def generate_diagnostic_summary(self, diagnostics: ModelDiagnostics) -> str:
        """Return the summary for a person, redacted like the report, fit to be pasted into an issue."""
        return summarize(diagnostics)


def diagnostics_of(report: ModelReport, load_attempt_result: Any = None) -> ModelDiagnostics:
    """Return the redacted diagnostics of a model that was checked; see `collect_model_diagnostics`."""
    attempt = _attempt(report, load_attempt_result)
    errors, warnings, advice = _sentences(report)
    if isinstance(load_attempt_result, BaseException):
        text = str(load_attempt_result) or type(load_attempt_result).__name__
        errors = list(dict.fromkeys([text, *errors]))
        advice = list(dict.fromkeys([*getattr(load_attempt_result, "fixes", ()), *advice]))
    elif isinstance(load_attempt_result, VideoGenerationResult):
        warnings = list(dict.fromkeys([*load_attempt_result.warnings, *warnings]))
    home = os.path.expanduser("~")
    return ModelDiagnostics(
        model_path=redact_text(report.facts.root, home),
        model_name=redact_text(_model_name(report), home),
        timestamp=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        system_info=redact(_system_info(report), home),
        model_analysis=redact(_analysis(report), home),
        pipeline_attempt=redact(attempt, home),
        errors=redact(errors, home),
        warnings=redact(warnings, home),
        recommendations=redact(advice, home),
    )


def with_fallback(diagnostics: ModelDiagnostics, report: ModelReport, model_path: str) -> ModelDiagnostics:
    """Return the diagnostics with what is left of the model and what could be used instead (supervisor/fallback.py).

    Starts a worker, which loads each part. Where no worker can be started, the reason stands in the place of the parts.
    """
    from wan_compat.supervisor.fallback import FallbackHandler

    handler, home = FallbackHandler(), os.path.expanduser("~")
    fallback: dict[str, Any] = {}
    try:
        parts = handler.attempt_component_isolation(model_path)
        fallback["parts"] = [
            {"name": part.name, "class_name": part.info.class_name, "usable": part.usable, "reason": part.reason}
            for part in parts
        ]
    except WanCompatError as error:
        fallback["parts_not_tried"] = error.message
    if report.exit_code or any(not part["usable"] for part in fallback.get("parts", ())):
        target = report.architecture.variant or report.architecture.architecture_type
        fallback["alternatives"] = [dataclasses.asdict(model) for model in handler.suggest_alternative_models(target)]
    return dataclasses.replace(diagnostics, fallback=redact(fallback, home))


def diagnose_failure(model_path: str, error: WanCompatError, folder: str | os.PathLike[str]) -> str | None:
    """Write a report about a failed job and return its path; None where that fails, which must not hide the error."""
    with contextlib.suppress(WanCompatError, OSError):
        collector = DiagnosticCollector(folder)
        diagnostics = collector.collect_model_diagnostics(model_path, error)
        return collector.write_compatibility_report(diagnostics.model_name, diagnostics)
    return None


def _model_name(report: ModelReport) -> str:
    return report.facts.repository or os.path.basename(os.path.abspath(report.facts.root)) or "model"


def _system_info(report: ModelReport) -> dict[str, Any]:
    from wan_compat.supervisor.doctor import read_gpus

    gpus = read_gpus()
    first: Mapping[str, Any] = gpus[0] if gpus else {}
    return from_template(
        "system_info",
        {
            "gpu": first.get("name"),
            "vram_total": int(first.get("memory_total_bytes", 0)) // _MEGABYTE,
            "vram_available": int(first.get("memory_free_bytes", 0)) // _MEGABYTE,
            "python_version": platform.python_version(),
            "torch_version": find_version("torch"),
            "diffusers_version": find_version("diffusers"),
            "transformers_version": find_version("transformers"),
            "accelerate_version": find_version("accelerate"),
            "wan_compat_version": __version__,
            "os": f"{platform.system()} {platform.release()} {platform.machine()}",
            "in_virtual_environment": sys.prefix != sys.base_prefix,
            "cpu_count": report.host.cpu_count,
            "ram_total": report.host.memory_total_bytes // _MEGABYTE,
            "ram_available": report.host.memory_available_bytes // _MEGABYTE,
        },
    )


def _analysis(report: ModelReport) -> dict[str, Any]:
    from wan_compat.policies.model_index import ModelIndexSchema

    architecture, facts = report.architecture, report.facts
    attributes: dict[str, Any] = {}
    valid = "model_index.json" in facts.documents
    if valid:
        try:
            schema = ModelIndexSchema.model_validate(dict(facts.index))
        except ValueError:
            valid = False
        else:
            attributes = dict(schema.custom_attributes or {})
            valid = not any(
                item.severity is Severity.ERROR and item.path == "model_index.json" for item in report.findings
            )
    return from_template(
        "model_analysis",
        {
            "architecture_detected": architecture.architecture_type,
            "variant": architecture.variant,
            "candidates": list(architecture.candidates),
            "confidence": architecture.confidence,
            "version": architecture.version,
            "layout": architecture.layout,
            "is_wan": architecture.is_wan,
            "evidence": [f"{item.fact} ({item.source})" for item in architecture.evidence[:_MAX_EVIDENCE]],
            "has_model_index": "model_index.json" in facts.files,
            "model_index_valid": valid,
            "components_found": sorted(architecture.components),
            "vae_dimensions": architecture.vae_dimensions,
            "custom_attributes": attributes,
            "findings": [item.to_json() for item in report.findings],
            "revision": facts.revision,
        },
    )


def _attempt(report: ModelReport, result: Any) -> dict[str, Any]:
    pipeline = report.architecture.pipeline_class
    lacking = {"no_pipeline", "pipeline_class_unknown", "diffusers_missing", "diffusers_too_old"}
    known: dict[str, Any] = {
        "attempted_pipeline": pipeline,
        "pipeline_available": pipeline is not None and not any(item.code in lacking for item in report.findings),
    }
    if isinstance(result, VideoGenerationResult):
        known |= {
            "attempted_pipeline": result.metadata.pipeline_class,
            "load_success": result.success,
            "recovery": list(result.recovery),
            "trust_remote_code": result.metadata.generation_params.get("mode") == "trust",
        }
    elif isinstance(result, BaseException):
        known |= {"load_success": False, "error_type": getattr(result, "code", type(result).__name__)}
        details = getattr(result, "details", {})
        known |= {name: details[name] for name in ("recovery", "recovery_ended") if name in details}
        if not isinstance(result, WanCompatError):
            known["error_type"] = type(result).__name__
    elif isinstance(result, Mapping):
        known |= {str(key): value for key, value in result.items()}
    elif (first := next((item for item in report.findings if item.severity is Severity.ERROR), None)) is not None:
        # Not tried: what would have been raised.
        known["error_type"] = (
            "missing_pipeline_class" if first.code in ("no_pipeline", "pipeline_class_unknown") else first.code
        )
    return from_template("pipeline_attempt", known)


def _sentences(report: ModelReport) -> tuple[list[str], list[str], list[str]]:
    """Return errors, warnings and recommendations of the findings, each once, in the report's order."""
    errors, warnings, advice = [], [], []
    for item in report.findings:
        where = f"{item.component}: " if item.component and item.component not in item.message else ""
        text = f"{where}{item.message}"
        if item.severity is Severity.ERROR:
            errors.append(text)
        elif item.severity is Severity.WARNING:
            warnings.append(text)
        if item.severity is not Severity.INFO and item.fix and item.fix != "none needed":
            advice.append(f"{item.fix} ({FINDINGS[item.code].meaning.rstrip('.')})")
    if not errors and report.requirements.recommended_vram_mb:
        advice.append(
            f"for full speed a GPU with {report.requirements.recommended_vram_mb} MB is recommended"
            + (f" ({report.requirements.plan})" if report.requirements.plan else "")
        )
    return (list(dict.fromkeys(errors)), list(dict.fromkeys(warnings)), list(dict.fromkeys(advice)))
