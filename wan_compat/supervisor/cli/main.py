"""The program `wan-compat`: its verbs, and the way from an exception to words and an exit code.

Stays light (tests/test_package.py holds it to a budget): verbs import what they need when they run.

    0 ok · 1 findings, or not compatible here · 2 usage · 3 environment lacks something · 4 model invalid
    5 refused by policy · 6 not enough memory or disk · 7 generation failed · 8 encoding failed · 9 batch partly failed
    10 sandbox not available · 70 a bug of ours · 124 timeout · 130 interrupted · 141 broken pipe · 143 terminated
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

from wan_compat._version import __version__
from wan_compat.protocol.errors import InvalidRequest, JobCancelled, Terminated, WanCompatError, clean_text
from wan_compat.supervisor.cli.batch import batch
from wan_compat.supervisor.cli.check import check
from wan_compat.supervisor.cli.config import config
from wan_compat.supervisor.cli.convert import convert
from wan_compat.supervisor.cli.demo import demo
from wan_compat.supervisor.cli.diagnose import diagnose
from wan_compat.supervisor.cli.doctor import doctor
from wan_compat.supervisor.cli.encode import encode
from wan_compat.supervisor.cli.generate import generate
from wan_compat.supervisor.cli.info import info
from wan_compat.supervisor.cli.install_deps import install_deps
from wan_compat.supervisor.cli.load_test import test_load
from wan_compat.supervisor.cli.monitor import monitor
from wan_compat.supervisor.cli.options import Quiet, Verbose
from wan_compat.supervisor.cli.plan import plan
from wan_compat.supervisor.cli.scan import scan
from wan_compat.supervisor.cli.serve import serve
from wan_compat.supervisor.cli.session import Session, give_up_stdout
from wan_compat.supervisor.cli.trust import trust
from wan_compat.supervisor.cli.update_registry import update_registry

PROGRAM = "wan-compat"
EXIT_INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits(3)
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE

app = typer.Typer(
    name=PROGRAM,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: no boxes in pipes and logs, and nothing to import for it
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for verb in (
    *(demo, check, scan, plan, diagnose, test_load, generate, encode, info, convert),
    *(serve, monitor, doctor, install_deps, update_registry),
):
    app.command()(verb)
app.add_typer(batch)
app.add_typer(trust)
app.add_typer(config)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def options_before_the_verb(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run Wan video models you do not fully trust: contained, fitted to your machine, and explained."""
    context.obj.verb = context.invoked_subcommand or ""
    context.obj.louder(quiet=quiet, verbose=verbose)


def run() -> NoReturn:
    """Entry point of `wan-compat` and `python -m wan_compat`."""
    _complete_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup sets SIGHUP to be ignored, and means it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_termination)
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        give_up_stdout()
        code = EXIT_BROKEN_PIPE
    sys.exit(code)


def _complete_streams() -> None:
    """Give a program that was started without stdin, stdout or stderr (`>&-`) the null device in their place.

    Else the first files that it opens get these numbers, and what is meant for a terminal is written into them.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - open for as long as the program
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: a name that a terminal lacks is no bug


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every error is told to the user here.

    Raises:
        BrokenPipeError: Nobody reads our output any more.
    """
    session = Session(json=_asks_for_json(arguments))
    try:
        code = app(args=list(arguments), prog_name=PROGRAM, standalone_mode=False, obj=session)
        # typer turns a KeyboardInterrupt into 130 without a word; no verb returns 130 of its own.
        return session.failure(JobCancelled("interrupted")) if code == JobCancelled.exit_code else code or 0
    except WanCompatError as error:
        return session.failure(error)
    except KeyboardInterrupt:
        return session.failure(JobCancelled("interrupted"))
    except TerminationRequested:
        return session.failure(Terminated("asked to terminate; everything that was running was ended"))
    except typer.TyperException as error:
        return _usage_error(session, error)
    except BrokenPipeError:
        raise
    except SystemExit as end:
        # typer answers a closed pipe with exit code 1, which means "findings" here.
        if isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from None
        raise
    except Exception as error:  # noqa: BLE001 - a bug of ours: tell it without a wall of text
        from wan_compat.supervisor.system_limits import limit_reached

        return session.failure(limit_reached(error) or _internal_error(session, error))


class TerminationRequested(BaseException):
    """SIGTERM or SIGHUP arrived. Like KeyboardInterrupt it passes by handlers of Exception, but runs every cleanup."""


class InternalError(WanCompatError):
    code = "internal_error"
    title = "Internal error"
    exit_code = EXIT_INTERNAL_ERROR


def _on_termination(number: int, frame: FrameType | None) -> None:
    # Once is enough: a second one must not interrupt the cleanup that the first one started.
    signal.signal(number, signal.SIG_IGN)
    raise TerminationRequested


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether --json stands among the options; known before parsing, so that usage errors can be JSON too."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def _usage_error(session: Session, error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else PROGRAM
    message = error.format_message().replace(": Value error, ", ": ")  # pydantic's, through typer's choices
    if session.json:
        session.failure(InvalidRequest(message, hint=f"see `{command} --help`"))
    elif type(error).__name__ == "NoArgsIsHelpError":
        print(message, file=sys.stderr)
    else:
        usage = f"{context.get_usage()}\n" if context is not None else ""
        text = f"{usage}Try '{command} --help' for help.\n\nError: {message}"
        print(clean_text(text), file=sys.stderr)
    return InvalidRequest.exit_code


def _internal_error(session: Session, error: Exception) -> InternalError:
    if session.verbose:
        print(clean_text("".join(traceback.format_exception(error)), 20_000), file=sys.stderr)
    return InternalError(
        f"{type(error).__name__}: {error}",
        hint="this is a bug in wan-compat: please report it with the output of the same command with -v",
    )
