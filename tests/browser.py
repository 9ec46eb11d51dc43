"""A headless Chromium for tests of pages, driven over its DevTools protocol.

The protocol goes over two pipes (`--remote-debugging-pipe`: JSON documents that end with a zero byte), so that nothing
listens anywhere and no library is needed. Every request that the page makes is noted.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium-headless-shell")
TIMEOUT_S = 20.0


class Browser:
    """One browser with one page. Use as a context manager.

    Attributes:
        requests: Addresses that the page asked for, since it was opened.
        messages: What its console and its log said.
    """

    def __init__(self) -> None:
        assert BROWSER is not None
        self._profile = tempfile.TemporaryDirectory(prefix="wan-compat-browser-", ignore_cleanup_errors=True)
        self._in, theirs_out = _pipe(its_end=1)
        self._out, theirs_in = _pipe(its_end=0)
        self._buffer = b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.requests: list[str] = []
        self.messages: list[str] = []
        self._process = subprocess.Popen(
            # The protocol's pipes are descriptors 3 and 4 of the browser.
            ["/bin/bash", "-c", f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$0" "$@"', BROWSER, *self._options()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs_in, theirs_out),
            start_new_session=True,
            env={"HOME": self._profile.name, "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def _options(self) -> list[str]:
        return [
            # Its sandbox needs rights that tests do not have everywhere; the pages are ours.
            *("--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
            # No name leads anywhere: a page that tried the network would fail, and the attempt is in `requests`.
            "--host-resolver-rules=MAP * ~NOTFOUND",
        ]  # fmt: skip

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its answer."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            answer = self._next(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self._note(answer)

    def open(self, page: Path, fragment: str = "") -> None:
        """Load a page and wait until it is whole."""
        self.call("Page.navigate", url="about:blank")
        self.requests.clear()
        self.messages.clear()
        self.call("Page.navigate", url=page.as_uri() + fragment)
        self.wait_for("document.readyState === 'complete' && location.protocol === 'file:'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page, promises awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, f"never true: {expression}; {self.messages}"
            time.sleep(0.01)

    def move_to(self, selector: str) -> None:
        """Put the pointer over the middle of an element."""
        x, y = self._middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key, such as "/", "Enter", "Escape" or "ArrowRight"."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}.get(key, ord(key[0]))
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **extra)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def close(self) -> None:
        """End the browser and everything it started."""
        os.close(self._out)
        os.close(self._in)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._profile.cleanup()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _middle(self, selector: str) -> tuple[float, float]:
        # Two pictures later everything that coming into sight changed has its place.
        box = self.evaluate(
            f"(async () => {{ const part = document.querySelector({json.dumps(selector)});"
            " for (let i = 0; i < 2; i++) { part.scrollIntoView({block: 'center'}); await new Promise(requestAnimationFrame); }"
            " const { x, y, width, height } = part.getBoundingClientRect();"
            " return [x + width / 2, y + height / 2]; })()"
        )
        return box[0], box[1]

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._in], [], [], left)[0], "the browser does not answer"
            chunk = os.read(self._in, 1 << 16)
            assert chunk, "the browser ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Log.entryAdded":
            self.messages.append(parameters["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(str([item.get("value") for item in parameters["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.messages.append(str(parameters["exceptionDetails"]))


def _pipe(its_end: int) -> tuple[int, int]:
    """Return (our end, its end) of a pipe. Its end is a high number: 3 and 4 must be free to become copies of it."""
    ends = os.pipe()
    high = fcntl.fcntl(ends[its_end], fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(ends[its_end])
    return ends[1 - its_end], high
