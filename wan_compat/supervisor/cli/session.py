"""One run of the command line: where its words go, and how loud it is.

stdout carries data, stderr carries progress and problems. With --json stdout gets exactly one JSON document.
Text that came from a model, a path or a worker is cleaned here, at the last moment before it reaches a terminal.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from wan_compat.protocol.errors import DiskExceeded, OutputNotWritable, WanCompatError, clean_text


@dataclasses.dataclass
class Session:
    """What the options that every verb shares amount to, and those of operations.py where a verb has them.

    `model` is named in error messages once a verb knows it; `warned` are warnings that the person has read already.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    model: str | None = None
    verb: str = ""
    log_file: str | None = None
    log_prompts: bool = False
    metrics: str | None = None
    warned: set[str] = dataclasses.field(default_factory=set)

    def louder(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> Session:
        """Take a verb's own flags in addition to those before the verb; returns self."""
        self.json |= json
        self.quiet |= quiet
        self.verbose |= verbose
        return self

    def observed(self, *, log_file: str | None, log_prompts: bool, metrics: str | None) -> Session:
        """Take the options of operations.py; returns self."""
        self.log_file, self.log_prompts, self.metrics = log_file, log_prompts, metrics
        return self

    def say(self, text: str) -> None:
        """Write a result for a person to stdout; silent with --json, whose document says it all."""
        if not self.json:
            self._write(clean_text(text))

    def note(self, text: str) -> None:
        """Write a remark to stderr; silent with --quiet."""
        if not self.quiet:
            print(clean_text(text), file=sys.stderr)

    def document(self, document: Mapping[str, Any]) -> None:
        """Write the JSON document to stdout. Non-ASCII is escaped, so no terminal control can survive in it."""
        self._write(json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False))

    def failure(self, error: WanCompatError) -> int:
        """Tell an error in the form that was asked for, and return its exit code."""
        if self.json:
            document = error.to_json()
            document["error"]["details"] = {"model": self.model, **error.details}
            self.document(document)
        else:
            sys.stderr.write(describe_error(error, model=self.model, bold=has_color(sys.stderr)))
        return error.exit_code

    def _write(self, text: str) -> None:
        """Write to stdout at once: in step with stderr, where both go to one place.

        Raises:
            BrokenPipeError: Nobody reads it any more.
            DiskExceeded, OutputNotWritable: It is a file, and does not take the text.
        """
        try:
            print(text, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            from wan_compat.supervisor.outputs import NO_SPACE

            give_up_stdout()
            self.json = False  # the error, at least, can be told on stderr
            kind = DiskExceeded if error.errno in NO_SPACE else OutputNotWritable
            raise kind(
                f"stdout cannot be written: {error.strerror}", hint="send it to another file, or free some space"
            ) from error


def give_up_stdout() -> None:
    """Let what goes to stdout from here on vanish; else what is buffered fails again when the interpreter ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def describe_error(error: WanCompatError, *, model: str | None, bold: bool = False) -> str:
    """Return title and code, Model, Issue, numbered quick fixes and Diagnostic, those that exist, for a terminal.

    By its code an error is found in docs/troubleshooting.md.
    """
    title = f"{clean_text(error.title, 200)} ({error.code})"
    lines = [f"\x1b[1;31m{title}\x1b[0m" if bold else title]
    if model:
        lines.append(f"Model: {clean_text(model, 1000)}")
    lines.append(f"Issue: {clean_text(error.message)}")
    if error.fixes:
        lines += ["", "Quick fixes:"]
        lines += [f"  {number}. {clean_text(fix, 500)}" for number, fix in enumerate(error.fixes, 1)]
    if error.diagnostic:
        lines += ["", f"Diagnostic: {clean_text(error.diagnostic, 1000)}"]
    return "\n".join(lines) + "\n"


def has_color(stream: TextIO) -> bool:
    """A terminal that can, and a person who did not say no (https://no-color.org)."""
    return can_redraw(stream) and not os.environ.get("NO_COLOR")


def can_redraw(stream: TextIO) -> bool:
    """Whether lines that were written can be written again: a terminal, and not a dumb one."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
