"""The terminal while the monitor has it: keys without Enter, a screen of its own, and everything put back afterwards.

`screen` is the only way to take it, and gives it back whatever happens in between: an exception, SIGTERM and SIGHUP
(which main.py turns into exceptions), Ctrl-C. Ctrl-Z gives it back for as long as the monitor sleeps. Signals are only
noted where they arrive, and acted upon in `Terminal.wait`, so that nothing is drawn in the middle of something else.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import select
import signal
import termios
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO

from rich.console import Console, ConsoleDimensions
from rich.control import Control
from rich.text import Text

from wan_compat.supervisor.monitor.keys import read_keys

_READ_BYTES = 4096
_ESCAPE_S = 0.05  # an escape is the key if nothing follows for this long; over SSH a sequence arrives in one piece
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"  # DECAWM
_DEFAULT_SIZE = (80, 24)
_NOTED = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)


class Gone(Exception):
    """There is no terminal any more."""


@contextlib.contextmanager
def screen(stdin: TextIO, stdout: TextIO, *, color: bool) -> Iterator[Terminal]:
    """Take the terminal and give it back."""
    terminal = Terminal(stdin, stdout, color=color)
    try:
        terminal.take()
        yield terminal
    finally:
        terminal.give_back()


class Terminal:
    """Use through `screen`. Everything here runs in the main thread, except `wake`."""

    def __init__(self, stdin: TextIO, stdout: TextIO, *, color: bool) -> None:
        self._in = stdin.fileno()
        self._out = stdout
        self._console = Console(
            file=stdout,
            force_terminal=True,
            no_color=not color,
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=False,
        )
        self._ready, self._bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._modes: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._old_bell: int | None = None
        self._noted: set[int] = set()
        self._shown: list[Text] = []
        self._size = (0, 0)
        self._rest = b""

    def size(self) -> tuple[int, int]:
        """Return columns and lines."""
        with contextlib.suppress(OSError):
            found = os.get_terminal_size(self._out.fileno())
            if found.columns > 0 and found.lines > 0:  # serial lines say 0
                return min(found.columns, 500), min(found.lines, 300)
        return _DEFAULT_SIZE

    def wake(self) -> None:
        """End a `wait` early. For any thread, also after the end."""
        with self._lock, contextlib.suppress(BlockingIOError):  # full: it wakes anyway
            if self._bell >= 0:
                os.write(self._bell, b"w")

    def wait(self, seconds: float) -> list[str]:
        """Wait for keys, a wake or a signal, at most this long, and return the keys.

        Raises:
            Gone: The terminal is closed.
        """
        found, _, _ = select.select([self._in, self._ready], [], [], seconds)
        if self._ready in found:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._ready, _READ_BYTES):
                    pass
        self._act_on_signals()
        return self._read() if self._in in found else []

    def draw(self, lines: list[Text]) -> None:
        """Show these lines; only those that changed are written, in one piece, so that nothing flickers.

        Raises:
            Gone: The terminal is closed.
        """
        size = self.size()
        if size != self._size:
            self._shown, self._size = [], size
            self._console.size = ConsoleDimensions(*size)
        try:
            with self._console as console:
                for place, line in enumerate(lines[: size[1]]):
                    if place < len(self._shown) and self._shown[place] == line:
                        continue
                    console.control(Control.move_to(0, place))
                    console.print(line, end="", overflow="crop", no_wrap=True, crop=True)
            self._out.flush()
        except OSError as error:
            raise Gone from error
        self._shown = lines

    def redraw(self) -> None:
        """Write everything at the next `draw`: another program may have written here."""
        self._shown = []
        with contextlib.suppress(OSError):
            self._console.control(Control.clear())

    # -- taking and giving back ------------------------------------------------------------------------------------

    def take(self) -> None:
        self._old_bell = signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
        for number in _NOTED:
            self._handlers[number] = signal.signal(number, self._note)
        self._enter()

    def give_back(self) -> None:
        self._leave()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if self._old_bell is not None:
            signal.set_wakeup_fd(self._old_bell)
            self._old_bell = None
        with self._lock:
            os.close(self._ready)
            os.close(self._bell)
            self._ready = self._bell = -1

    def _enter(self) -> None:
        if self._modes is None:
            self._modes = termios.tcgetattr(self._in)
        modes = copy.deepcopy(self._modes)
        # Keys one by one and unseen. Signals of keys stay, but for that of Ctrl-\, which would leave the terminal so;
        # Ctrl-S would freeze a screen that nobody expects to stand still.
        modes[0] &= ~termios.IXON
        modes[3] &= ~(termios.ICANON | termios.ECHO)
        modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
        modes[6][termios.VQUIT] = bytes([os.fpathconf(self._in, "PC_VDISABLE") & 0xFF])
        self._set(modes)
        self._write(_NO_WRAP, alternate=True)
        self._shown = []

    def _leave(self) -> None:
        if self._modes is None:
            return
        modes, self._modes = self._modes, None
        # Each by itself: a terminal that is gone takes neither, and that is no reason for another error.
        with contextlib.suppress(OSError):
            self._write(_WRAP, alternate=False)
        with contextlib.suppress(termios.error):
            self._set(modes)

    def _set(self, modes: list[Any]) -> None:
        while True:
            try:
                return termios.tcsetattr(self._in, termios.TCSADRAIN, modes)
            except termios.error as error:
                # In the background this call stops the process, and is interrupted when it goes on.
                if error.args[0] != errno.EINTR:
                    raise

    def _write(self, mode: str, *, alternate: bool) -> None:
        with self._console as console:
            if alternate:
                console.control(Control.alt_screen(True), Control.show_cursor(False), Control.clear(), Control.home())
            self._console.file.write(mode)
            if not alternate:
                console.control(Control.show_cursor(True), Control.alt_screen(False))
        self._out.flush()

    # -- signals ---------------------------------------------------------------------------------------------------

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.add(number)

    def _act_on_signals(self) -> None:
        noted, self._noted = self._noted, set()
        if signal.SIGTSTP in noted:
            self._sleep()
        elif signal.SIGCONT in noted:
            # Stopped by SIGSTOP, which nobody can hear: the shell has changed the terminal meanwhile.
            self._enter()

    def _sleep(self) -> None:
        """Give the terminal back and stop, as Ctrl-Z asks; take it again when continued."""
        self._leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        # Here it goes on.
        signal.signal(signal.SIGTSTP, self._note)
        self._noted.discard(signal.SIGCONT)
        self._enter()

    def _read(self) -> list[str]:
        try:
            data = os.read(self._in, _READ_BYTES)
        except OSError as error:
            raise Gone from error
        if not data:
            raise Gone
        keys, self._rest = read_keys(self._rest + data, is_all=False)
        if self._rest:
            followed, _, _ = select.select([self._in], [], [], _ESCAPE_S)
            if not followed:
                more, self._rest = read_keys(self._rest, is_all=True)
                keys += more
        return keys
