"""The supervisor's side of the program that talks to a hub: what it is given, what it may say, when it is ended.

huggingface_hub never runs in this process. The other one (`workers/hub_download.py`) has an environment made by hand;
a token, where the user has one, is in it and nowhere else. What it says is read under limits: text of a stranger.

It dies with the *thread* that started it (prctl(2), PR_SET_PDEATHSIG), and always before `run_hub` returns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import stat
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wan_compat.protocol.errors import (
    EnvironmentLacks,
    FetchFailed,
    InvalidRequest,
    ModelNotFound,
    SandboxEntryFailed,
    WanCompatError,
    WorkerExtraMissing,
    clean_text,
)

DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_LINE_BYTES = 8 << 20  # a listing of 2000 files with the longest names
MAX_ORDER_BYTES = 4 << 20
MAX_TOKEN_BYTES = 1000
LIST_TIMEOUT_S = 60.0
# A file must come forward by this much in this time, or the server keeps us waiting on purpose.
STALL_S = 60.0
STALL_BYTES = 64 << 10

_PROGRAM = ("-I", "-B", "-m", "wan_compat.workers.hub_download")
_ENVIRONMENT = {
    "PATH": "/nonexistent",
    "HOME": "/nonexistent",
    "HF_HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    # Plain HTTP: Xet writes caches of its own and cannot go on with a file in our hands.
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DOWNLOAD_TIMEOUT": "20",
}
_NETWORK_SETTINGS = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
_GO_ON = "run the same command again: it goes on where it stopped"


@dataclasses.dataclass(frozen=True)
class Hub:
    """Where to ask, and as whom. `token` is not shown when this is printed."""

    endpoint: str = DEFAULT_ENDPOINT
    token: str | None = dataclasses.field(default=None, repr=False)


def user_hub(environment: Mapping[str, str] | None = None) -> Hub:
    """Return the hub that the user's own environment names, in huggingface_hub's words: HF_ENDPOINT, HF_TOKEN,
    HF_TOKEN_PATH, HF_HOME. No file of a working folder has a say in it.

    Raises:
        FetchFailed: HF_HUB_OFFLINE is set.
        InvalidRequest: HF_ENDPOINT is no address, or not an encrypted one.
    """
    variables = os.environ if environment is None else environment
    if any(_is_true(variables.get(name)) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        raise FetchFailed("HF_HUB_OFFLINE is set: nothing is fetched", hint="unset it, or use a model that is here")
    endpoint = (variables.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
    try:
        parts = urllib.parse.urlsplit(endpoint)
        # Without encryption anybody on the way could change the hashes together with the files.
        sound = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1"))
        sound = sound and bool(parts.hostname) and not parts.username and endpoint.isprintable()
    except ValueError:
        sound = False
    if not sound:
        raise InvalidRequest("HF_ENDPOINT must be an https:// address without a user name")
    return Hub(endpoint, _token(variables))


def run_hub(
    hub: Hub,
    order: Mapping[str, Any],
    hear: Callable[[dict[str, Any]], bool],
    *,
    descriptors: Sequence[int] = (),
    timeout_s: float | None = None,
) -> None:
    """Run one order to its end.

    Args:
        order: Verb and arguments; what every order has is added here.
        hear: Called with each event; returns whether it is progress, without which the program is ended.
        descriptors: What the order's files may be written through.
        timeout_s: For all of it; None is no other limit than progress.

    Raises:
        FetchFailed, ModelNotFound: The hub cannot be reached, does not have it, or does not come forward.
        EnvironmentLacks, SandboxEntryFailed: huggingface_hub is missing, or the program cannot be confined.
    """
    read_paths = [os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
    document = {**order, "endpoint": hub.endpoint, "read_paths": read_paths, "parent_pid": os.getpid()}
    raw = json.dumps(document).encode()
    if len(raw) > MAX_ORDER_BYTES:
        raise FetchFailed("the list of files is too long to be asked for")
    process = _spawn(hub, descriptors)
    try:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended before it listened; its end says why
            process.stdin.write(raw)
            process.stdin.close()
        failure = _listen(process.stdout.fileno(), hear, timeout_s)
        if failure is not None:
            raise failure
        status = process.wait(10)
        if status != 0:
            raise FetchFailed(f"the program that fetches ended with status {status}", hint=_GO_ON)
    except subprocess.TimeoutExpired:
        raise FetchFailed("the program that fetches did not end", hint=_GO_ON) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _spawn(hub: Hub, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    environment = dict(_ENVIRONMENT)
    for name in _NETWORK_SETTINGS:
        for spelling in (name, name.lower()):
            if value := os.environ.get(spelling):
                environment[spelling] = value
    if hub.token is not None:
        environment["HF_TOKEN"] = hub.token
    try:
        return subprocess.Popen(
            [sys.executable, *_PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            pass_fds=descriptors,
            start_new_session=True,  # the terminal's Ctrl-C is for the supervisor alone
            bufsize=0,
        )
    except OSError as error:
        raise EnvironmentLacks(f"{sys.executable!r} could not be started: {error.strerror}") from error


def _listen(descriptor: int, hear: Callable[[dict[str, Any]], bool], timeout_s: float | None) -> WanCompatError | None:
    """Give every event to `hear` until the end; return the error that the program told of."""
    started = moved_at = time.monotonic()
    buffer = bytearray()
    failure: WanCompatError | None = None
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while True:
        now = time.monotonic()
        if timeout_s is not None and now - started > timeout_s:
            raise FetchFailed(f"the hub gave no answer within {timeout_s:g} s", hint="try again later")
        if now - moved_at > STALL_S:
            raise FetchFailed(f"the hub sent next to nothing for {STALL_S:g} s", hint=_GO_ON)
        if not poller.poll(200):
            continue
        chunk = os.read(descriptor, 1 << 20)
        if not chunk:
            return failure
        buffer += chunk
        *lines, rest = bytes(buffer).split(b"\n")
        buffer = bytearray(rest)
        if len(buffer) > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
            raise FetchFailed("the program that fetches said more than it has to say")
        for line in lines:
            event = _parse(line)
            if event.get("event") == "error":
                failure = _understand(event)
            elif hear(event):
                moved_at = time.monotonic()


def _parse(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise FetchFailed("the program that fetches said something that is no event")
    return event


def _understand(event: Mapping[str, Any]) -> WanCompatError:
    kind, message = event.get("kind"), clean_text(str(event.get("message", "")), 500)
    if kind == "not_found":
        return ModelNotFound(
            f"the hub has no such repository or revision, or hides it from you: {message}",
            hint="look at the spelling; a private repository needs HF_TOKEN",
        )
    if kind == "gated":
        return FetchFailed(
            f"the hub does not give this repository to everybody: {message}",
            hint="accept its conditions on its page, then set HF_TOKEN to a token that may read it",
        )
    if kind == "library_missing":
        return WorkerExtraMissing(
            f"huggingface_hub cannot be imported: {message}", hint="pip install 'wan-compat[worker]'"
        )
    if kind == "not_confined":
        return SandboxEntryFailed(
            f"the program that fetches could not be confined: {message}",
            hint="fetch with another tool, for instance hf download, and give the same id without --download",
        )
    if kind == "too_long":
        return FetchFailed(f"the hub sent a file that is longer than it had said: {message}")
    return FetchFailed(f"the hub could not be asked: {message}", hint=f"see to the connection; then {_GO_ON}")


def _token(variables: Mapping[str, str]) -> str | None:
    given = variables.get("HF_TOKEN") or variables.get("HUGGING_FACE_HUB_TOKEN")
    if not given and not _is_true(variables.get("HF_HUB_DISABLE_IMPLICIT_TOKEN")):
        home = variables.get("HF_HOME") or os.path.join(
            variables.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
        )
        given = _read_token(os.path.expanduser(variables.get("HF_TOKEN_PATH") or os.path.join(home, "token")))
    # A header of one line; anything else would be refused by the library in words that quote it.
    return given.strip() if given and given.strip().isascii() and given.strip().isprintable() else None


def _read_token(path: str) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return os.read(descriptor, MAX_TOKEN_BYTES).decode("ascii", "replace")
    finally:
        os.close(descriptor)


def _is_true(value: str | None) -> bool:
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")
