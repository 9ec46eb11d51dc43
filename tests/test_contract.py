"""Every class, method, field, verb, option and exit code that is promised (tests/contract.py) is there."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import typer.main
from pydantic import BaseModel

import wan_compat
from tests import contract
from tests.contract import Promise
from wan_compat.policies import findings
from wan_compat.protocol import errors
from wan_compat.supervisor import events as ev
from wan_compat.supervisor.cli.main import app

# The worker's own need torch: tests/workers/test_contract.py.
IMPORTED = ("supervisor", "policies", "protocol")


def room(name: str) -> ModuleType:
    return importlib.import_module(f"wan_compat.{name}")


PROMISES = [(where, name, promise) for where in IMPORTED for name, promise in contract.CLASSES[where].items()]


def found_fields(cls: type) -> set[str]:
    if dataclasses.is_dataclass(cls):
        return {field.name for field in dataclasses.fields(cls)}
    if issubclass(cls, BaseModel):
        return set(cls.model_fields)
    return set(inspect.get_annotations(cls))


def check_signature(function: Callable[..., Any], promised: tuple[str, ...]) -> None:
    """Raise AssertionError unless a call with the promised parameters, in their order, is possible."""
    if promised == ("",):
        return  # any: it has arguments, which are not promised
    signature = inspect.signature(function)
    parameters = {name: one for name, one in signature.parameters.items() if name not in ("self", "cls")}
    keywords = [name for name, one in parameters.items() if one.kind is one.VAR_KEYWORD]
    promised_names = []
    for text in promised:
        if text.startswith("**"):
            assert keywords, f"no {text}"
            continue
        name, default = contract.parameter(text)
        promised_names.append(name)
        assert name in parameters, f"no parameter {name!r} in {signature}"
        found = parameters[name].default
        if default is ...:
            assert found is not inspect.Parameter.empty, f"{name} has no default"
        elif default is not None:
            assert str(found) == default, f"{name} has the default {found!r}"
    positional = [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert positional[: len(promised_names)] == promised_names
    for name, one in parameters.items():
        optional = one.default is not one.empty or one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        assert optional or name in promised_names, f"{name} must be given, and is not promised"


def check_class(cls: Any, promise: Promise) -> None:
    for method, promised in promise.methods.items():
        function = inspect.getattr_static(cls, method, None)
        assert function is not None, f"no method {method}"
        check_signature(getattr(cls, method), promised)
    assert not set(promise.fields) - found_fields(cls)


# -- classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "name", "promise"), PROMISES, ids=[one[1] for one in PROMISES])
def test_a_promised_class_is_found_in_its_room_with_all_that_it_has(where: str, name: str, promise: Promise) -> None:
    cls = getattr(room(where), name)
    assert inspect.isclass(cls) and cls.__name__ == name and inspect.getdoc(cls)
    check_class(cls, promise)


@pytest.mark.parametrize(("where", "name"), contract.ATTRIBUTES)
def test_an_object_keeps_what_is_promised(where: str, name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    made = getattr(room(where), name)()
    for attribute in (*contract.ATTRIBUTES[where, name], *contract.HELPERS.get((where, name), ())):
        assert hasattr(made, attribute), attribute
    assert list(tmp_path.iterdir()) == [], "making one writes nothing"


def test_an_unknown_mode_of_loading_is_a_value_error() -> None:
    manager = room("supervisor").SafeLoadManager()
    assert manager.mode == "safe"
    manager.set_loading_mode("trust")
    with pytest.raises(ValueError, match="both"):
        manager.set_loading_mode("both")


@pytest.mark.parametrize("name", contract.PACKAGE)
def test_the_package_has_what_programs_import(name: str) -> None:
    assert name in wan_compat.__all__
    check_class(getattr(wan_compat, name), contract.PACKAGE[name])


@pytest.mark.parametrize("name", contract.FUNCTIONS)
def test_the_package_has_the_functions(name: str) -> None:
    assert name in wan_compat.__all__
    check_signature(getattr(wan_compat, name), contract.FUNCTIONS[name])


def test_events_are_typed() -> None:
    for name in contract.EVENTS:
        assert dataclasses.is_dataclass(getattr(ev, name)), name
    for name, fields in contract.EVENT_FIELDS.items():
        assert set(fields) <= found_fields(getattr(ev, name))


# -- values ------------------------------------------------------------------------------------------------------------


def test_constants_are_in_their_room_with_their_content() -> None:
    for where, names in contract.OTHERS.items():
        for name in names:
            assert getattr(room(where), name)
    template = room("policies").DIAGNOSTIC_TEMPLATE
    for part, names in contract.DIAGNOSTIC_FIELDS.items():
        assert names <= set(template[part]), part
    example = room("policies").COMPATIBILITY_REGISTRY_EXAMPLE
    name, pipeline = contract.REGISTRY_EXAMPLE
    assert example[name]["pipeline_class"] == pipeline
    assert not contract.REGISTRY_KEYS - set(example[name])
    assert not {"min_mb", "recommended_mb"} - set(example[name]["vram_requirements"])


def test_enumerated_values_are_those_that_are_promised() -> None:
    from wan_compat.policies import architecture
    from wan_compat.policies.findings import FINDINGS
    from wan_compat.policies.variants import VARIANTS
    from wan_compat.protocol.plan import Offload

    assert set(room("policies").VAEType.__members__) >= contract.VAE_TYPES
    assert set(Offload.__args__) >= contract.OFFLOAD_STRATEGIES
    assert FINDINGS and VARIANTS and architecture.__doc__
    source = "".join(
        path.read_text()
        for path in sorted(_package().glob("policies/**/*.py")) + sorted(_package().glob("supervisor/**/*.py"))
    )
    for word in contract.ARCHITECTURE_TYPES | contract.FALLBACK_TYPES | contract.RISK_LEVELS | contract.LAYOUTS:
        assert f'"{word}"' in source, word


def _package() -> Path:
    return Path(wan_compat.__file__).parent


@pytest.mark.parametrize("kind", contract.FAILURES)
def test_every_kind_of_failure_has_a_code(kind: str) -> None:
    known = {*findings.FINDINGS, *errors._by_code}
    assert known & set(contract.FAILURES[kind])


def test_exit_codes_are_those_of_the_errors() -> None:
    raised = {cls.exit_code for cls in errors._by_code.values()}
    assert not set(contract.EXIT_CODES) - raised - {9}  # of a batch that failed in part, which raises nothing


# -- the command line --------------------------------------------------------------------------------------------------


def command(verb: str) -> click.Command:
    found: Any = typer.main.get_command(app)
    for word in verb.split():
        assert word in found.commands, f"no verb {verb}"
        found = found.commands[word]
    return found


def options(found: click.Command) -> set[str]:
    return {name for one in found.params for name in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize("verb", contract.VERBS)
def test_a_promised_verb_has_its_options(verb: str) -> None:
    found = command(verb)
    assert not set(contract.VERBS[verb].options) - options(found)
    assert found.help


@pytest.mark.parametrize("verb", contract.WITH_DRY_RUN)
def test_what_writes_can_be_asked_what_it_would_do(verb: str) -> None:
    assert "--dry-run" in options(command(verb))


def test_options_of_the_program_itself() -> None:
    found: Any = typer.main.get_command(app)
    assert not set(contract.GLOBAL_OPTIONS) - options(found) - set(found.context_settings.get("help_option_names", ()))


def test_the_two_ways_to_call_it_are_one_program() -> None:
    main = (_package() / "__main__.py").read_text()
    script = re.search(r'^wan-compat = "(.*):(.*)"$', (_package().parent / "pyproject.toml").read_text(), re.MULTILINE)
    assert script is not None and f"from {script[1]} import {script[2]}" in main


# -- documents ---------------------------------------------------------------------------------------------------------


def test_the_documents_of_the_verbs_that_only_look_have_their_fields(tmp_path: Path) -> None:
    from wan_compat.supervisor.demo import demo_model
    from wan_compat.supervisor.doctor import examine
    from wan_compat.supervisor.plan_report import plan_model
    from wan_compat.supervisor.scanner import scan_model

    model = str(demo_model())
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (broken / "code.py").write_text("import os; os.system('x')\n")
    (broken / "model_index.json").write_text("{")
    request = wan_compat.GenerationRequest(model=model, prompt="")
    check = wan_compat.Supervisor().check(model).to_json()
    damaged = wan_compat.Supervisor().check(str(broken)).to_json()
    scan, plan, doctor = scan_model(str(broken)).to_json(), plan_model(request).to_json(), examine().to_json()
    for verb, document in (("check", check), ("scan", scan), ("plan", plan), ("doctor", doctor)):
        assert not {*contract.VERBS[verb].document, "schema_version"} - set(document), verb
    has_part("evidence", check["evidence"][0])
    for component in check["components"].values():
        has_part("component", component)
    has_part("finding", damaged["findings"][0])
    has_part("scan finding", scan["findings"][0])
    has_part("scanned file", scan["files"][0])
    assert scan["risk_level"] in contract.RISK_LEVELS and check["layout"] in contract.LAYOUTS
    assert check["architecture_type"] in contract.ARCHITECTURE_TYPES
    assert set(plan["phases"]) <= contract.PHASES
    for phase in plan["phases"].values():
        has_part("phase", phase)
    for layer in doctor["layers"].values():
        has_part("layer", layer)


def has_part(name: str, found: Mapping[str, object]) -> None:
    assert not contract.PARTS[name] - set(found), name


def test_the_document_of_a_finished_job_has_its_fields() -> None:
    from wan_compat.protocol import results

    fields = found_fields(results.VideoGenerationResult)
    assert not {*contract.VERBS["generate"].document} - fields
    parts = {"timings": results.Timings, "sandbox": results.SandboxReport, "output": results.OutputReport}
    for name, cls in parts.items():
        assert not contract.PARTS[name] - found_fields(cls), name
    assert not contract.PARTS["recovery"] - found_fields(ev.Recovered)  # of which the document's list is made


def test_the_document_of_an_error_has_its_fields() -> None:
    has_part("error", errors.InvalidRequest("x", hint="y").to_json()["error"])
