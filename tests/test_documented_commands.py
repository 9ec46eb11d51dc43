"""Every command that a document shows is one that the program takes, and the guide for a first model runs as it stands."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main

from wan_compat import GenerationRequest
from wan_compat.supervisor.cli.main import app
from wan_compat.supervisor.demo import demo_model

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [
    *sorted(REPOSITORY.glob("*.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "examples").rglob("*.md")),
]
SHELL = ("bash", "sh", "console")
# Of the guide; what stays is run. A smoke test is tests/cli/test_load_test.py's, and costs another start of a worker.
NOT_RUN = ("test-load",)
# The machine's own matter, whatever it is.
ANY_END = ("doctor",)


class Shown(NamedTuple):
    """One command line of a document, without the program's name."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)[:70]}"


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield language and content of the fenced blocks."""
    for match in re.finditer(r"^```([a-z]*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


def commands(page: Path) -> Iterator[Shown]:
    for language, text in blocks(page):
        for line in re.sub(r"\\\n", " ", text).splitlines():
            # In a block without a language output stands too, which may begin with the program's name.
            prompted = line.startswith("$ ")
            if not (language in SHELL or (not language and (prompted or re.match(r"wan-compat [a-z-]+ \S", line)))):
                continue
            if "wan-compat" not in line:
                continue
            words = shlex.split(line.removeprefix("$ "), comments=True)
            yield from (Shown(page.name, one) for one in program_calls(words))


def program_calls(words: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield the arguments of each call of the program in a line: `echo x | wan-compat ... > file`."""
    calls: list[list[str]] = [[]]
    for word in words:
        if word in ("|", "&&", ";", "&", ">", "2>", "<"):
            calls.append([])
        else:
            calls[-1].append(word)
    for call in calls:
        for at, word in enumerate(call):
            if Path(word).name == "wan-compat" or call[at : at + 3] == ["python", "-m", "wan_compat"]:
                yield tuple(call[at + (1 if Path(word).name == "wan-compat" else 3) :])
                break


PROGRAM: Any = typer.main.get_command(app)
COMMANDS = [shown for page in PAGES for shown in commands(page)]


def resolve(words: tuple[str, ...], *, whole: bool) -> None:
    """Parse a command line, without running it; of one that is not whole, only its verb and the names of its options."""
    command: Any = PROGRAM
    context = command.make_context("wan-compat", [], resilient_parsing=True)
    rest = list(words)
    while hasattr(command, "commands"):
        own = {name for one in command.params for name in one.opts} | {"-h", "--help"}
        while rest and rest[0] in own:
            rest.pop(0)
        if not rest:
            return
        assert rest[0] in command.commands, f"there is no verb {rest[0]!r}"
        command = command.commands[rest[0]]
        name = rest.pop(0)
        if not hasattr(command, "commands"):
            break
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {"-h", "--help"}
    used = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
    assert not used - known, f"{name} has no {sorted(used - known)}"
    if whole and not used & {"-h", "--help"}:
        command.make_context(name, rest, parent=context)


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 50 and len({shown.page for shown in COMMANDS}) > 10


@pytest.mark.parametrize("shown", COMMANDS, ids=str)
def test_a_command_of_a_document_is_one_that_the_program_takes(shown: Shown) -> None:
    resolve(shown.words, whole=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for words in re.findall(r"`wan-compat ([^`]+)`", text):
        if not re.match(r"(VERB|\.\.\.)", words):
            resolve(tuple(shlex.split(words)), whole=False)


# -- Python ------------------------------------------------------------------------------------------------------------

PYTHON = [(page, text) for page in PAGES for language, text in blocks(page) if language == "python"]


@pytest.mark.parametrize(("page", "text"), PYTHON, ids=[page.name for page, _ in PYTHON])
def test_python_of_a_document_compiles_and_imports_what_is_there(page: Path, text: str) -> None:
    compile(text, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "wan_compat":
            assert not {alias.name for alias in node.names} - names_of(node.module or "")
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "GenerationRequest":
            assert not {one.arg for one in node.keywords if one.arg} - set(GenerationRequest.model_fields)


def names_of(module: str) -> set[str]:
    """Return what can be imported from a module. A worker's is read, not imported: this process needs no torch."""
    if module.startswith("wan_compat.workers"):
        found = importlib.util.find_spec(module)
        assert found is not None and found.origin is not None
        text = Path(found.origin).read_text()
        pairs = re.findall(r'^(?:class|def) (\w+)|^    "(\w+)": "wan_compat', text, re.MULTILINE)
        return {name for pair in pairs for name in pair}
    imported = importlib.import_module(module)
    return {*dir(imported), *getattr(imported, "_HOMES", ())}


# -- the guide ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_the_guide_for_a_first_model_runs_line_by_line(tmp_path: Path) -> None:
    """In one process, which imports once what a shell's many would."""
    lines = [
        shown.words
        for shown in commands(REPOSITORY / "docs" / "first_model.md")
        if shown.words[0] not in NOT_RUN and not any("original" in word for word in shown.words)
    ]
    assert {words[0] for words in lines} == {"doctor", "check", "scan", "plan", "generate", "info", "trust"}
    shutil.copytree(demo_model(), tmp_path / "path" / "to" / "model")
    program = (
        "import json, sys\n"
        "from wan_compat.supervisor.cli.main import main\n"
        "ends = [main(words) for words in json.loads(sys.argv[1])]\n"
        "print('ENDS', json.dumps(ends))\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": ""}
    environment |= {f"XDG_{kind}_HOME": str(tmp_path / kind.lower()) for kind in ("CACHE", "STATE", "DATA", "CONFIG")}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(lines)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ends = json.loads(done.stdout.rpartition("ENDS ")[2])
    failed = [words for words, end in zip(lines, ends, strict=True) if end != 0 and words[0] not in ANY_END]
    assert failed == [], done.stdout + done.stderr
    assert (tmp_path / "small.mp4").stat().st_size > 1000
    assert "Would write" in done.stdout and "Wrote" in done.stdout
