"""Questions to the person at the terminal. Without one nothing is asked, and nobody is taken to have agreed."""

from __future__ import annotations

import sys

from wan_compat.protocol.errors import NotConfirmed, WanCompatError, clean_text
from wan_compat.supervisor.cli.options import Mode
from wan_compat.supervisor.cli.session import Session

SAFE_MODE = (
    "Safe mode: no code of the repository is run, and no pickle is opened. The model is loaded in a sandboxed\n"
    "process that has no network, none of your other files, and a limit on memory."
)
TRUST_MODE = (
    "Trust mode: code of the repository that you approved is run, byte for byte as approved. It still runs in the\n"
    "sandbox (tier B at least): no network, none of your other files, a limit on memory. It can waste time within\n"
    "your limits and draw what it likes, and a bug of the kernel would be open to it."
)


def can_ask(session: Session) -> bool:
    """Whether somebody is there to answer: a terminal to read from and to ask on, and no program that wants JSON."""
    return not session.json and sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> bool:
    """Ask on stderr; only a plain yes is one."""
    print(f"{clean_text(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline(100).strip().lower() in ("y", "yes")


def confirm_first_use(session: Session, model: str, mode: Mode, *, yes: bool) -> None:
    """Ask once before a model is used for the first time, where somebody can be asked.

    Without a terminal, or with `yes`, safe mode goes on, and the job records the use; what trust mode may do is for
    the approvals to say, not for this question.

    Raises:
        NotConfirmed: The answer was no.
    """
    if yes or not can_ask(session):
        return
    from wan_compat.protocol import values
    from wan_compat.supervisor import first_use

    try:
        if not first_use.is_first_use(model):
            return
    except WanCompatError as error:
        if error.exit_code != 3:  # the model's own trouble, which the job will tell better
            return
        session.note(f"Warning: {error.message}")
    print(f"\n{clean_text(model, 1000)} has not been used here before.", file=sys.stderr)
    print(TRUST_MODE if mode is Mode.TRUST else SAFE_MODE, file=sys.stderr)
    if not ask("Use it?"):
        raise NotConfirmed(f"{model!r} was not used", hint="answer y, or give --yes, if you want to use it")
    try:
        first_use.remember(model, values.Mode(mode.value), confirmed=True)
    except WanCompatError as error:
        session.note(f"Warning: the first use of this model could not be recorded: {error.message}")
