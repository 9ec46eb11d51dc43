"""The terminal's modes and what is written to it, on a pseudoterminal."""

from __future__ import annotations

import os
import pty
import signal
import termios
from collections.abc import Iterator

import pytest
from rich.text import Text

from wan_compat.supervisor.monitor.terminal import Gone, Terminal, screen


class Ends:
    """A pseudoterminal: `read` is what a person would see."""

    def __init__(self) -> None:
        self.ours, theirs = pty.openpty()
        os.set_blocking(self.ours, False)
        self.stdin = os.fdopen(theirs, "r", closefd=False)
        self.stdout = os.fdopen(theirs, "w", encoding="utf-8")

    def read(self) -> bytes:
        shown = b""
        try:
            while True:
                shown += os.read(self.ours, 65536)
        except BlockingIOError:
            return shown


@pytest.fixture
def ends() -> Iterator[Ends]:
    both = Ends()
    yield both
    os.close(both.ours)
    both.stdin.close()
    both.stdout.close()


def lines(*texts: str) -> list[Text]:
    return [Text(text.ljust(80), no_wrap=True, end="") for text in texts]


def test_only_what_changed_is_written(ends: Ends) -> None:
    with screen(ends.stdin, ends.stdout, color=True) as terminal:
        terminal.draw(lines("one", "two", "three"))
        assert b"three" in ends.read()
        terminal.draw(lines("one", "two", "three"))
        assert ends.read() == b""
        terminal.draw(lines("one", "2", "three"))
        shown = ends.read()
        assert b"2" in shown
        assert b"one" not in shown
        assert b"three" not in shown
        assert b"\x1b[2;1H" in shown
        terminal.redraw()
        terminal.draw(lines("one", "2", "three"))
        assert b"three" in ends.read()


def test_keys_come_without_enter_and_modes_and_handlers_are_given_back(ends: Ends) -> None:
    before = termios.tcgetattr(ends.stdin), signal.getsignal(signal.SIGTSTP), signal.getsignal(signal.SIGWINCH)
    with screen(ends.stdin, ends.stdout, color=True) as terminal:
        os.write(ends.ours, b"j\x1b[B\x1b")
        assert terminal.wait(10) == ["j", "down", "escape"]
        assert terminal.wait(0) == []
        terminal.wake()
        assert terminal.wait(60) == []  # at once
        os.write(ends.ours, b"\x1c\x13")  # Ctrl-\ would end the program, Ctrl-S freeze the screen
        assert terminal.wait(10) == []
        assert not termios.tcgetattr(ends.stdin)[3] & (termios.ECHO | termios.ICANON)
    terminal.wake()  # by a thread that is late
    after = termios.tcgetattr(ends.stdin), signal.getsignal(signal.SIGTSTP), signal.getsignal(signal.SIGWINCH)
    assert after == before


def test_a_terminal_is_given_back_when_taking_it_fails_halfway(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    before = termios.tcgetattr(ends.stdin)

    def fail(self: Terminal, mode: str, *, alternate: bool) -> None:
        if alternate:
            raise RuntimeError("in the middle")

    monkeypatch.setattr(Terminal, "_write", fail)
    with pytest.raises(RuntimeError, match="in the middle"), screen(ends.stdin, ends.stdout, color=True):
        pass
    assert termios.tcgetattr(ends.stdin) == before


def test_a_terminal_that_is_gone_is_told_and_no_further_error() -> None:
    both = Ends()
    with screen(both.stdin, both.stdout, color=True) as terminal:
        os.close(both.ours)
        with pytest.raises(Gone):
            terminal.wait(10)
        with pytest.raises(Gone):
            terminal.draw(lines("one"))
    both.stdin.close()
    with pytest.raises(OSError):  # what was not written yet
        both.stdout.close()
