"""The frame of every verb: help, versions, errors in both forms, exit codes, streams."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.cli.conftest import Ended, RunCli, command
from wan_compat._version import __version__
from wan_compat.protocol import errors
from wan_compat.protocol.values import Isolation, Mode, Task
from wan_compat.sandbox.spec import Tier
from wan_compat.supervisor.cli import main as main_module
from wan_compat.supervisor.cli import options, task_options
from wan_compat.supervisor.cli.main import app, main
from wan_compat.supervisor.cli.session import Session, describe_error

ESCAPE = "\x1b"
VERBS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every verb and the groups above it, with how it is called."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from leaves(below, (*path, name))


def all_error_classes() -> list[type[errors.WanCompatError]]:
    found, waiting = [], [errors.WanCompatError]
    while waiting:
        cls = waiting.pop()
        found.append(cls)
        waiting += [sub for sub in cls.__subclasses__() if sub.__module__ == errors.__name__]
    return found


def test_version_is_one_line_on_stdout(cli: RunCli) -> None:
    ended = cli("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"wan-compat {__version__}\n", "")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_is_plain_text_on_stdout(verb: str, flag: str, cli: RunCli) -> None:
    ended = cli(*([verb] if verb else []), flag)
    assert ended.code == 0
    assert ended.out.startswith(f"Usage: wan-compat {verb}".rstrip())
    assert ESCAPE not in ended.out and ended.err == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_verb_has_a_help_text(verb: str) -> None:
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    for leaf in getattr(command, "commands", {verb: command}).values():
        assert [parameter.name for parameter in leaf.params if not parameter.help] == []
        assert {"--json", "--quiet", "--verbose"} <= {option for parameter in leaf.params for option in parameter.opts}


def test_no_word_of_a_help_text_is_cut(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines break at hyphens too, and what is cut there cannot be found or copied."""
    monkeypatch.setenv("COLUMNS", "80")
    for path, leaf in leaves(typer.main.get_command(app)):
        assert main([*path, "--help"]) == 0
        shown = capsys.readouterr().out
        texts = [leaf.help or ""]
        for each in leaf.params:
            texts += [each.help or "", each.metavar or "", *(name for name in each.opts if name.startswith("-"))]
        words = {word for text in texts for word in text.split()}
        assert words - set(shown.split()) - set(re.split(r"[\s,]+", shown)) == set()
        assert max(len(line) for line in shown.splitlines()) < 80


def test_nothing_at_all_is_a_usage_error_that_shows_the_help(cli: RunCli) -> None:
    ended = cli()
    assert (ended.code, ended.out) == (2, "")
    assert "Commands:" in ended.err


USAGE_ERRORS = [
    (["nonsense"], "No such command 'nonsense'"),
    (["demo", "--nonsense"], "--nonsense"),
    (["demo", "--seed", "seven"], "--seed"),
    (["generate"], "MODEL"),
    (["generate", "model"], "--prompt"),
    (["generate", "model", "--prompt", "x", "--memory-limit", "8XB"], "8XB"),
    (["generate", "model", "--prompt", "x", "--mode", "unsafe"], "--mode"),
    (["generate", "model", "--prompt", "x", "--min-tier", "F"], "--min-tier"),
]


@pytest.mark.parametrize(("arguments", "named"), USAGE_ERRORS, ids=[" ".join(case[0]) for case in USAGE_ERRORS])
def test_usage_errors_name_what_is_wrong_in_both_forms(arguments: list[str], named: str, cli: RunCli) -> None:
    ended = cli(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert named in ended.err and "--help" in ended.err and "Traceback" not in ended.err

    ended = cli(*arguments, "--json")
    assert (ended.code, ended.err) == (2, "")
    assert ended.document["error"]["code"] == "invalid_request"
    assert named in ended.document["error"]["message"]


@pytest.mark.parametrize("cls", all_error_classes(), ids=lambda cls: cls.code)
def test_every_error_keeps_its_code_and_exit_code(
    cls: type[errors.WanCompatError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise cls("what happened", fixes=["do this", "or that"], diagnostic="report.json", details={"n": 1})

    monkeypatch.setattr("wan_compat.supervisor.doctor.examine", fail)
    assert main(["doctor"]) == cls.exit_code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        f"{cls.title} ({cls.code})\nIssue: what happened\n\n"
        "Quick fixes:\n  1. do this\n  2. or that\n\nDiagnostic: report.json\n"
    )

    assert main(["doctor", "--json"]) == cls.exit_code
    error = json.loads(capsys.readouterr().out)["error"]
    assert error.pop("details") == {"model": None, "n": 1}
    assert error == {
        "code": cls.code,
        "title": cls.title,
        "message": "what happened",
        "fixes": ["do this", "or that"],
        "diagnostic": "report.json",
    }


def test_a_bug_of_ours_is_told_as_one_with_its_traceback_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a \x1b[31mred\x1b[0m number")

    monkeypatch.setattr("wan_compat.supervisor.doctor.examine", fail)
    assert main(["doctor"]) == main_module.EXIT_INTERNAL_ERROR
    quiet = capsys.readouterr().err
    assert "bug in wan-compat" in quiet and "Traceback" not in quiet
    assert main(["doctor", "-v"]) == main_module.EXIT_INTERNAL_ERROR
    loud = capsys.readouterr().err
    assert "Traceback" in loud
    assert ESCAPE not in quiet + loud


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KeyboardInterrupt(), "job_cancelled"), (main_module.TerminationRequested(), "terminated")],
)
def test_interruption_and_termination_are_documents_too(
    raised: BaseException, code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr("wan_compat.supervisor.doctor.examine", fail)
    assert main(["doctor", "--json"]) == {"job_cancelled": 130, "terminated": 143}[code]
    assert f'"code": "{code}"' in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    ["\x1b]0;title\x07", "\x1b[2J", "a\rb", "\u202egpj.exe", "\u2066x", "\x9b31m", "a\x00b", "[bold]x[/bold]"],
    ids=repr,
)
def test_hostile_text_never_reaches_the_terminal_as_it_is(text: str) -> None:
    error = errors.ModelCorrupt(text, fixes=[text], diagnostic=text)
    shown = describe_error(error, model=text)
    if text.startswith("[bold]"):
        assert text in shown  # markup is text here: nothing interprets it
    else:
        assert text not in shown
    assert not {char for char in shown if char in "\x1b\x07\r\x9b\x00\u202e\u2066"}


def test_a_path_with_controls_is_shown_escaped(cli: RunCli) -> None:
    ended = cli("generate", "mo\x1b[31mdel", "--prompt", "x")
    assert ended.code == 4
    assert ESCAPE not in ended.err and r"\x1b" in ended.err
    ended = cli("generate", "mo\x1b[31mdel", "--prompt", "x", "--json")
    assert ESCAPE not in ended.out


def test_a_closed_pipe_is_not_a_traceback(environment: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            command("--help"), stdout=writer, stderr=subprocess.PIPE, env=environment, timeout=60, check=False
        )
    finally:
        os.close(writer)
    assert done.returncode == main_module.EXIT_BROKEN_PIPE
    assert done.stderr == b""


@pytest.mark.parametrize("json", [(), ("--json",)])
def test_a_stdout_that_takes_nothing_is_an_error_with_a_code(
    environment: dict[str, str], json: tuple[str, ...]
) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("config", "show", *json),
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=60,
            check=False,
        )
    assert done.returncode == errors.DiskExceeded.exit_code
    assert done.stderr.startswith(
        b"Not enough disk space (disk_exceeded)\nIssue: stdout cannot be written: No space left"
    )
    assert b"Traceback" not in done.stderr


def test_a_program_without_streams_opens_no_file_in_their_place(environment: dict[str, str], tmp_path: Path) -> None:
    script = f"{shlex.join(command('config', 'show'))} <&- >&- 2>&-; echo $?"
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, env=environment, cwd=tmp_path, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == (b"0\n", b"")


def test_colour_needs_a_terminal_and_consent(environment: dict[str, str], tmp_path: Path) -> None:
    arguments = ("generate", "nowhere", "--prompt", "x")
    coloured = re.compile(r"\x1b\[[0-9;]*m")
    assert coloured.search(run_in_terminal(environment, tmp_path, *arguments).err)
    assert not coloured.search(run_in_terminal({**environment, "NO_COLOR": "1"}, tmp_path, *arguments).err)
    assert ESCAPE not in run_in_terminal({**environment, "TERM": "dumb"}, tmp_path, *arguments).err


def run_in_terminal(environment: dict[str, str], folder: Path, *arguments: str) -> Ended:
    """Run with a terminal as stderr; what came out of it is in `err`."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            env={"TERM": "xterm", **environment},
            cwd=folder,
        ) as process:
            os.close(theirs)
            shown = b""
            while True:
                try:
                    chunk = os.read(ours, 65536)
                except OSError:  # EIO: nobody has the terminal open any more
                    break
                if not chunk:
                    break
                shown += chunk
            process.wait(60)
    finally:
        os.close(ours)
    return Ended(process.returncode, "", shown.decode())


def test_the_light_copies_of_enumerations_are_in_step() -> None:
    pairs = ((options.Mode, Mode), (options.Isolation, Isolation), (options.MinTier, Tier), (task_options.Task, Task))
    for light, real in pairs:
        assert [item.value for item in light] == [item.value for item in real]


def test_quiet_and_verbose_may_stand_before_or_after_the_verb() -> None:
    session = Session().louder(quiet=True)
    assert session.louder(verbose=True) == Session(quiet=True, verbose=True)


def test_nohup_is_respected(environment: dict[str, str]) -> None:
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from wan_compat.supervisor.cli import main as program\n"
        "sys.argv = ['wan-compat', '--version']\n"
        "try: program.run()\n"
        "except SystemExit: pass\n"
        "print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, signal.getsignal(signal.SIGTERM))\n"
    )
    python = command()[0]
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=True)
    assert "True <function _on_termination" in done.stdout
    assert signal.getsignal(signal.SIGTERM) is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "", "--prompt", "x"), "MODEL is empty"),
        (("generate", "m\udcff", "--prompt", "x"), "MODEL is not UTF-8"),
        (("generate", "m", "--prompt", "x" * 20_001), "--prompt is longer than 20000 characters"),
        (("generate", "m", "--prompt", "x", "--memory-limit", "1MB"), "--memory-limit should be at least 256 MiB"),
        (("generate", "m", "--prompt", "x", "--width", "3"), "--width should be greater than or equal to 16"),
        (("generate", "m", "--prompt", "x", "--task", "x2v"), "'--task': 'x2v' is not one of"),
    ],
)
def test_a_value_out_of_bounds_is_told_in_words_for_people(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
