"""Pipelines of diffusers by name: which one runs a model, what it takes, whether given arguments fit.

Judged by the diffusers that is installed, read as source (`installed.py`); where none is, by the registry's table.
Nothing is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from wan_compat.policies.architecture import ArchitectureSignature, PipelineRequirements, ValidationResult
from wan_compat.policies.pipeline_choice import choose_pipeline
from wan_compat.policies.registry import SECURITY_FLOORS, pipeline_arguments, version_problem
from wan_compat.policies.registry_document import PipelineEntry
from wan_compat.protocol.errors import ModelNotCompatible, clean_text
from wan_compat.supervisor.installed import InstalledPackage, PipelineSignature, find_package
from wan_compat.supervisor.registry import CompatibilityRegistry

if TYPE_CHECKING:
    from wan_compat.supervisor.sandboxed_pipeline import SandboxedPipeline


class PipelineManager:
    """Args:
    registry: What is known about pipelines; None is this user's.
    site_packages: Judge by the diffusers of another interpreter.
    """

    def __init__(self, registry: CompatibilityRegistry | None = None, *, site_packages: str | None = None) -> None:
        self._registry = registry or CompatibilityRegistry(site_packages=site_packages)
        self._site_packages = site_packages

    def select_pipeline_class(self, architecture: ArchitectureSignature) -> str:
        """Return the class that runs a model with these marks.

        Raises:
            ModelNotCompatible: diffusers has no pipeline for it; says why.
        """
        choice = choose_pipeline(architecture)
        if choice.pipeline_class is None:
            raise ModelNotCompatible(
                f"no pipeline of diffusers runs this model: {choice.reason}",
                hint="see `wan-compat check MODEL` for what it is and what to use instead",
            )
        return choice.pipeline_class

    def load_custom_pipeline(self, model_path: str, pipeline_class: str, **kwargs: Any) -> SandboxedPipeline:
        """Return what runs a model in a worker: called as the pipeline would be, which never exists in this process.

        Args:
            kwargs: Of `SandboxedPipeline.from_pretrained` (`mode`, `torch_dtype`, `supervisor`, ...).

        Raises:
            ModelNotCompatible: The model does not run in this class; names those in which it does.
            PipelineFeatureMissing: An argument that asks for what is not done.
            WanCompatError: Whatever speaks against the model: a code of its own that nobody approved, a pickle, ...
        """
        from wan_compat.supervisor.sandboxed_pipeline import SandboxedPipeline

        return SandboxedPipeline.from_pretrained(model_path, pipeline_class=pipeline_class, **kwargs)

    def get_pipeline_requirements(self, pipeline_class: str) -> PipelineRequirements:
        """Return what a class asks for: arguments of its call, packages, and the least memory that one of its models
        needs under the registry's leanest plan (0: not known).

        Raises:
            ModelNotCompatible: No such class, neither installed nor known.
        """
        entry, _, signature = self._look_up(pipeline_class)
        required, optional = pipeline_arguments(_effective(entry, signature))
        models = [
            model
            for model in self._registry.document.models.values()
            if pipeline_class in (model.pipeline_class, *model.also_loads_as)
        ]
        memory = [model.vram_requirements.min_mb for model in models if model.vram_requirements.min_mb]
        first = min(models, key=lambda model: Version(model.min_diffusers_version or "9999"), default=None)
        floors = [f"{name}>={version}" for name, version in SECURITY_FLOORS.items()]
        return PipelineRequirements(
            required_args=required,
            optional_args=optional,
            dependencies=list(first.required_dependencies) if first is not None else floors,
            min_vram_mb=min(memory, default=0),
            supports_cpu_offload=any("cpu_offload" in model.supported_optimizations for model in models),
        )

    def validate_pipeline_args(self, pipeline_class: str, provided_args: Mapping[str, Any]) -> ValidationResult:
        """Say whether arguments for a pipeline's call are complete and known. None counts as not given.

        Raises:
            ModelNotCompatible: No such class, neither installed nor known.
        """
        entry, package, signature = self._look_up(pipeline_class)
        effective = _effective(entry, signature)
        version = package.version if package is not None else None
        result = ValidationResult(is_valid=False)
        if package is not None and signature is None:
            need = (
                f"needs diffusers >= {entry.min_diffusers_version}"
                if entry.min_diffusers_version
                else "is not in diffusers"
            )
            why = version_problem(entry.min_diffusers_version, version) or f"{need}, you have {version}"
            result.errors.append(f"{pipeline_class} {why}")
        elif (problem := version_problem(None, version)) is not None:
            result.warnings.append(problem)
        given = {name for name, value in provided_args.items() if value is not None}
        result.missing = [name for name in effective.required_args if name not in given]
        result.errors += [f"{pipeline_class} needs {name}" for name in result.missing]
        for group in effective.one_of:
            if not given & {*group} and not {*group} & {*result.missing}:
                result.missing.append(group[0])
                result.errors.append(f"{pipeline_class} needs {' or '.join(group)}")
        known = {*effective.required_args, *effective.optional_args}
        if known and not effective.accepts_more:
            result.unknown = [name for name in provided_args if name not in known]
            init = {*signature.init.names} if signature is not None and signature.init is not None else set()
            result.errors += [_unknown(pipeline_class, name, entry, version, known, init) for name in result.unknown]
        result.is_valid = not result.errors
        return result

    def _look_up(self, name: str) -> tuple[PipelineEntry, InstalledPackage | None, PipelineSignature | None]:
        package = find_package("diffusers", self._site_packages)
        signature = package.signature(name) if package is not None else None
        entry = self._registry.document.pipelines.get(name)
        if entry is None and (signature is None or not name.endswith("Pipeline")):
            names = sorted(self._registry.document.pipelines)
            usual = [known for known in names if known.startswith("Wan") and "Modular" not in known]
            raise ModelNotCompatible(
                f"diffusers has no pipeline {clean_text(name, 120)!r}",
                hint=_did_you_mean(name, names) or f"Wan's own are {', '.join(usual)}",
            )
        return entry or PipelineEntry(), package, signature


def _effective(entry: PipelineEntry, signature: PipelineSignature | None) -> PipelineEntry:
    """Return the arguments that the installed class takes, or the registry's where the source does not tell."""
    if signature is None or signature.call is None:
        return entry
    names = {*signature.call.names}
    return entry.model_copy(
        update={
            "required_args": signature.call.required,
            "optional_args": tuple(signature.call.optional),
            "accepts_more": signature.call.accepts_more,
            "one_of": tuple(
                group for group in (tuple(n for n in group if n in names) for group in entry.one_of) if group
            ),
        }
    )


def _unknown(
    pipeline_class: str, name: str, entry: PipelineEntry, version: str | None, known: set[str], init: set[str]
) -> str:
    shown = clean_text(name, 80)
    since = entry.since.get(name)
    if since is not None and version is not None and _older(version, since):
        return f"{shown} of {pipeline_class} {version_problem(since, version)}"
    if name in init:
        return f"{shown} is given to {pipeline_class} when it is loaded, not when it generates"
    return f"{pipeline_class} takes no {shown}{'; ' + hint if (hint := _did_you_mean(name, sorted(known))) else ''}"


def _older(version: str, since: str) -> bool:
    try:
        return Version(Version(version).base_version) < Version(since)
    except InvalidVersion:
        return False


def _did_you_mean(name: str, names: list[str]) -> str | None:
    close = difflib.get_close_matches(name[:120], names, n=2, cutoff=0.7)
    return f"did you mean {' or '.join(close)}?" if close else None
