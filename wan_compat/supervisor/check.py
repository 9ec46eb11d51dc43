"""`check`: what a model is, what it needs, whether it will run here. Reads no weights, starts and writes nothing.

facts         inspection: names, sizes, JSON, weight headers, under limits
architecture  what it is, with the evidence
findings      what is wrong with it, here and anywhere
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from wan_compat.policies.architecture import Architecture, Component, ModelRequirements
from wan_compat.policies.detection.decide import detect
from wan_compat.policies.detection.traits import traits_of
from wan_compat.policies.facts import HostFacts, ModelFacts
from wan_compat.policies.findings import Finding, finding
from wan_compat.policies.judgement.identity import TASKS, TaskAnswer, answer_task, judge_task
from wan_compat.policies.judgement.judge import exit_code, in_order, is_error, is_loadable, judge
from wan_compat.policies.judgement.parts import parts_of
from wan_compat.policies.judgement.resources import cheapest_bytes
from wan_compat.policies.judgement.versions import Installed, classes_to_find, minimum_diffusers, needed_packages
from wan_compat.policies.registry_document import RegistryEntry
from wan_compat.policies.repair import INDEX, Proposal, diff, propose_repair
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.supervisor.host import read_host
from wan_compat.supervisor.inspection import read_facts
from wan_compat.supervisor.installed import find_package, find_version
from wan_compat.supervisor.model_parts import Parts, read_parts
from wan_compat.supervisor.registry import CompatibilityRegistry

REPORT_SCHEMA_VERSION = 1

_MAX_INDEX_TEXT_BYTES = 64 << 10  # of a broken index, for the diff


@dataclasses.dataclass(frozen=True)
class ModelReport:
    """The answer about one model.

    Args:
        facts: What was read; not part of the document.
        loadable: diffusers can load it with explicit classes: layout and classes exist, the files are sound.
        compatible_here: And this version of wan-compat can run it on this machine, for the task if one was named.
        repair: What `--repair` would write, None where there is nothing to mend or no way to know how.
    """

    model: str
    facts: ModelFacts
    architecture: Architecture
    requirements: ModelRequirements
    findings: tuple[Finding, ...]
    task: TaskAnswer | None
    repair: Proposal | None
    host: HostFacts
    installed: Installed
    elapsed_s: float

    @property
    def loadable(self) -> bool:
        return is_loadable(self.findings)

    @property
    def compatible_here(self) -> bool:
        return not any(is_error(item) for item in self.findings)

    @property
    def exit_code(self) -> int:
        """What the command line ends with; see `policies/judgement/judge.py`."""
        return exit_code(self.findings)

    @property
    def repair_diff(self) -> str | None:
        """The proposed model_index.json against the one that is there."""
        return None if self.repair is None else diff(_index_text(self.facts), self.repair)

    def to_json(self) -> dict[str, Any]:
        """Return the `check` document."""
        architecture = self.architecture
        return {
            "schema_version": REPORT_SCHEMA_VERSION,
            "model": self.model,
            "is_wan": architecture.is_wan,
            "architecture_type": architecture.architecture_type,
            "version": architecture.version,
            "variant": architecture.variant,
            "candidates": list(architecture.candidates),
            "confidence": architecture.confidence,
            "evidence": [dataclasses.asdict(item) for item in architecture.evidence],
            "layout": architecture.layout,
            "pipeline_class": architecture.pipeline_class,
            "also_loads_as": list(architecture.also_loads_as),
            "capabilities": list(architecture.capabilities),
            "vae_dimensions": architecture.vae_dimensions,
            "components": {name: _component(item) for name, item in architecture.components.items()},
            "requirements": dataclasses.asdict(self.requirements),
            "task": None if self.task is None else dataclasses.asdict(self.task),
            "findings": [item.to_json() for item in self.findings],
            "repair": None if self.repair is None else {"changes": list(self.repair.changes), "diff": self.repair_diff},
            "loadable": self.loadable,
            "compatible_here": self.compatible_here,
            "repository": self.facts.repository,
            "revision": self.facts.revision,
            "elapsed_s": round(self.elapsed_s, 6),
        }


def check_model(
    path: str | os.PathLike[str],
    task: str | None = None,
    *,
    host: HostFacts | None = None,
    parts: Parts | None = None,
) -> ModelReport:
    """Say what the model at `path` is and whether it will run here.

    Everything that is wrong with it is a finding, never an exception; what is wrong with `parts` is one.

    Args:
        path: A folder in any layout, a single weight file, or a Hugging Face cache snapshot.
        task: One of TASKS: whether the model does it is judged too.
        host: The machine to judge for; None is this one.
        parts: Files and a folder to which the model is put together, as `generate` would.

    Raises:
        ModelNotFound: There is nothing at `path`.
        ModelInvalid, ModelNotCompatible, PickleRefused: As `read_parts`, for what was given as parts.
        InvalidRequest: An unknown task.
    """
    started = time.perf_counter()
    if task is not None and task not in TASKS:
        raise InvalidRequest(f"task is {task!r}; known are {', '.join(TASKS)}")
    facts = read_facts(path)
    layout = None
    if parts is not None and parts.is_composed:
        layout = detect(facts).layout
        facts, _ = read_parts(os.fspath(path), parts)
    traits = traits_of(facts)
    architecture = detect(facts, traits)
    host = host or read_host()
    entry = registry_entry(architecture)
    installed = _installed(facts, entry)
    findings = _as_planned(judge(facts, architecture, traits, installed, host, entry), facts, host)
    if parts is None or not parts.is_composed:
        findings = _with_mends(findings, facts, host)
    answer = None if task is None else answer_task(task, architecture)
    if answer is not None:
        findings = in_order((*findings, *judge_task(answer)))
    if layout is not None:
        architecture = dataclasses.replace(architecture, layout=layout)
    return ModelReport(
        model=os.fspath(path),
        facts=facts,
        architecture=architecture,
        requirements=requirements_of(facts, architecture, entry),
        findings=findings,
        task=answer,
        repair=propose_repair(facts, architecture, findings),
        host=host,
        installed=installed,
        elapsed_s=time.perf_counter() - started,
    )


def _with_mends(findings: tuple[Finding, ...], facts: ModelFacts, host: HostFacts) -> tuple[Finding, ...]:
    """A broken model stays broken, and its exit code says so; that `generate` helps itself is told beside it."""
    if not any(is_error(item) for item in findings):
        return findings
    from wan_compat.supervisor.mending import what_generate_would_mend

    mends = what_generate_would_mend(facts, host)
    return in_order((*findings, *(finding("generate_mends", f"generate goes on: {item.action}") for item in mends)))


def _as_planned(findings: tuple[Finding, ...], facts: ModelFacts, host: HostFacts) -> tuple[Finding, ...]:
    """Weights that are too much at once are no error where a plan runs the model without having them all in memory."""
    if not any(item.code == "memory_short" for item in findings):
        return findings
    from wan_compat.supervisor.plan_report import default_choice

    choice = default_choice(facts, host)
    if choice is None or not choice.fits:
        return findings
    way = choice.chosen.candidate
    words = f"; the plan {way.name!r} runs it all the same, {way.cost.factor:g} times slower ({way.cost.basis})"
    return in_order(
        finding("memory_tight", f"{item.message}{words}") if item.code == "memory_short" else item for item in findings
    )


def _installed(facts: ModelFacts, entry: RegistryEntry | None) -> Installed:
    """Look up what workers would use: versions from metadata, classes from source, nothing imported."""
    versions = {name: find_version(name) for name in sorted({"diffusers", "transformers", *needed_packages(entry)})}
    wanted = classes_to_find(facts)
    packages = {library: find_package(library) for library in {library for library, _ in wanted}}
    lacking = {
        (library, name)
        for library, name in wanted
        if (package := packages[library]) is not None and not package.has_class(name)
    }
    return Installed(versions, frozenset(lacking))


def registry_entry(architecture: Architecture) -> RegistryEntry | None:
    """Return what is known about the variant that was found; a folder's name is nobody's word."""
    if architecture.variant is None:
        return None
    found = CompatibilityRegistry().entry(architecture.variant)
    return None if found is None else found[1]


def requirements_of(facts: ModelFacts, architecture: Architecture, entry: RegistryEntry | None) -> ModelRequirements:
    """Return what it needs: memory of its own headers, VRAM and packages as the registry knows them."""
    megabyte = 1_000_000
    vram = entry.vram_requirements if entry is not None else None
    return ModelRequirements(
        min_vram_mb=(vram.min_mb if vram else None) or 0,
        recommended_vram_mb=(vram.recommended_mb if vram else None) or 0,
        min_ram_mb=math.ceil(cheapest_bytes(facts, parts_of(facts, architecture)) / megabyte),
        disk_mb=math.ceil(sum(fact.size for fact in facts.files.values()) / megabyte),
        dependencies=list(entry.required_dependencies) if entry is not None else [],
        min_diffusers_version=minimum_diffusers(architecture, entry),
        plan=vram.plan if vram else None,
    )


def _component(component: Component) -> Mapping[str, Any]:
    document = dataclasses.asdict(component)
    del document["name"]
    return document


def _index_text(facts: ModelFacts) -> str:
    """Return the text of model_index.json as far as it is one, empty where there is none."""
    fact = facts.files.get(INDEX)
    if fact is None:
        return ""
    try:
        with open(fact.real_path, "rb") as file:
            return file.read(_MAX_INDEX_TEXT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
