"""Wheels: fetched one by one from an index, held against their pinned hash, then put into a folder. By pip.

    fetch_wheel     pip download --require-hashes --only-binary :all: --no-deps     one file; nothing is built or run
    unpack_wheels   pip install --no-index --no-deps --target SITE                  no network

pip runs as a program of its own, with an environment written by hand and no configuration of the user's or machine's:
what may be installed, in which version and from where, is decided here. Proxies and certificates are the exception,
since without them there is no network in many places. pip dies with us, and is ended by its group.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from wan_compat.policies.dependency_lock import LockedWheel
from wan_compat.protocol.errors import DeadlineExceeded, DiskExceeded, EnvironmentLacks, FetchFailed, HashMismatch

DEFAULT_INDEX = "https://pypi.org/simple"

MAX_OUTPUT_BYTES = 64 << 10  # the tail that is kept; what is said before is forgotten
FETCH_TIMEOUT_S = 1800.0
UNPACK_TIMEOUT_S = 600.0
_QUIET_S = 20  # of the network, before pip tries again
_RETRIES = 2

_PIP = (
    "from wan_compat.sandbox.credentials import die_with_parent; die_with_parent(); "
    "import runpy; runpy.run_module('pip', run_name='__main__', alter_sys=True)"
)
_OPTIONS = ("--isolated", "--no-input", "--disable-pip-version-check", "--no-color", "--no-cache-dir")
# How to reach an index at all; credentials are not among them.
_NETWORK_VARIABLES = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)
_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectionError|Connection refused|Connection reset|ConnectTimeout|Read timed out|ReadTimeout"
    r"|Name or service not known|Temporary failure in name resolution|Network is unreachable|ProxyError|SSLError"
    r"|CERTIFICATE_VERIFY_FAILED|Max retries exceeded|IncompleteRead|HTTP error [45]|[45]\d\d (Client|Server) Error"
)


def require_pip() -> None:
    """Raises EnvironmentLacks where this Python has no pip (environments made by uv have none)."""
    if importlib.util.find_spec("pip") is None:
        raise EnvironmentLacks(
            f"{sys.executable} has no pip to install with", hint=f"{sys.executable} -m ensurepip --upgrade"
        )


def fetch_wheel(name: str, version: str, wheel: LockedWheel, index: str, folder: Path) -> Path:
    """Fetch one wheel into `folder` and return its path; its bytes have the pinned hash.

    Args:
        index: Address of a simple index, or a folder with wheels.

    Raises:
        HashMismatch: The index has other bytes under this name.
        FetchFailed: The index cannot be reached.
        EnvironmentLacks: It has no such wheel, or pip is missing or failed.
        DiskExceeded, DeadlineExceeded: What they say.
    """
    require_pip()
    if is_folder(index) and not os.path.isdir(index):
        raise EnvironmentLacks(
            f"{index} is no folder here, and wheels are to come from it",
            hint="correct package_index in your configuration, or WAN_COMPAT_PACKAGE_INDEX",
        )
    order = folder / f"{name}.txt"
    order.write_text(f"{name}=={version} --hash=sha256:{wheel.sha256}\n")
    where = ["--no-index", "--find-links", index] if is_folder(index) else ["--index-url", index]
    status, said = _run_pip(
        [
            *("download", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--progress-bar", "off"),
            *("--retries", str(_RETRIES), "--timeout", str(_QUIET_S), "--dest", str(folder), "-r", str(order)),
            *where,
        ],
        folder,
        FETCH_TIMEOUT_S,
    )
    path = folder / wheel.filename
    if status == 0 and path.is_file():
        _check_hash(path, wheel)
        return path
    if "DO NOT MATCH THE HASHES" in said:
        got = re.search(r"Got\s+([0-9a-f]{64})", said)
        raise _mismatch(wheel, got[1] if got else "another one", index)
    _raise_for_the_disk(said, folder)
    if status == 0 or (_NO_NETWORK.search(said) is None and re.search("No matching distribution|from versions:", said)):
        raise EnvironmentLacks(
            f"{index} has no {wheel.filename}, which is what this version of wan-compat installs",
            hint="another index may have it: set package_index in your configuration, or WAN_COMPAT_PACKAGE_INDEX",
        )
    if _NO_NETWORK.search(said) is not None:
        raise FetchFailed(
            f"{index} cannot be reached: {_why(said)}",
            fixes=[
                "connect this machine to the network and try again; nothing was installed",
                "without network: put the wheels into a folder on another machine (--dry-run --json lists them with "
                "their hashes), and name it with WAN_COMPAT_PACKAGE_INDEX=/path/to/folder",
            ],
        )
    raise _failed(f"fetching {name} {version}", status, said)


def unpack_wheels(wheels: Sequence[Path], site: Path, scratch: Path) -> None:
    """Put wheels into `site`, compiled. Their hashes were checked; nothing else is looked at or fetched.

    Raises:
        EnvironmentLacks: pip failed; says how.
        DiskExceeded, DeadlineExceeded: What they say.
    """
    require_pip()
    status, said = _run_pip(
        [
            *("install", "--no-index", "--no-deps", "--only-binary", ":all:", "--no-warn-script-location"),
            *("--progress-bar", "off", "--target", str(site), *map(str, wheels)),
        ],
        scratch,
        UNPACK_TIMEOUT_S,
    )
    if status != 0:
        _raise_for_the_disk(said, site)
        raise _failed("unpacking the wheels", status, said)


def is_folder(index: str) -> bool:
    return index.startswith("/")


def _run_pip(arguments: Sequence[str], scratch: Path, timeout_s: float) -> tuple[int, str]:
    """Run pip to its end; return (exit status, the last of what it said). Whatever happens, it is gone afterwards."""
    environment = {name: os.environ[name] for name in _NETWORK_VARIABLES if name in os.environ}
    environment |= {
        "HOME": str(scratch),  # no .netrc, no caches
        "TMPDIR": str(scratch),
        "PATH": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "PIP_CONFIG_FILE": os.devnull,  # --isolated alone still reads the machine's
    }
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _PIP, *arguments[:1], *_OPTIONS, *arguments[1:]],
        env=environment,
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # the terminal's Ctrl-C is for us, who then end it
    )
    said = b""
    deadline = time.monotonic() + timeout_s
    try:
        assert process.stdout is not None
        while True:
            readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise DeadlineExceeded(f"pip took longer than {timeout_s:g} s", hint="try again on a faster network")
            chunk = os.read(process.stdout.fileno(), 64 << 10)
            if not chunk:
                break
            said = (said + chunk)[-MAX_OUTPUT_BYTES:]
        return process.wait(timeout=max(1.0, deadline - time.monotonic())), said.decode("utf-8", "replace")
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _check_hash(path: Path, wheel: LockedWheel) -> None:
    # Once more, and by us: what is installed must not rest on pip's options alone.
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise _mismatch(wheel, found, "pip")


def _mismatch(wheel: LockedWheel, found: str, index: str) -> HashMismatch:
    return HashMismatch(
        f"{wheel.filename} from {index} is not what was pinned: expected SHA-256 {wheel.sha256}, found {found}",
        hint="nothing was installed; somebody changed this file: use another index, and tell its operator",
        details={"file": wheel.filename, "expected": wheel.sha256, "found": found},
    )


def _raise_for_the_disk(said: str, folder: Path) -> None:
    if re.search(r"No space left on device|Errno 28|Disk quota exceeded", said):
        raise DiskExceeded(
            f"no space is left for {folder}",
            hint="free some, or set XDG_DATA_HOME to another disk; nothing was installed",
        )


def _failed(doing: str, status: int, said: str) -> EnvironmentLacks:
    how = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
    return EnvironmentLacks(
        f"{doing}: pip {how}: {_last_words(said)}",
        hint="try again; nothing was installed",
        details={"log": said[-4000:]},
    )


def _why(said: str) -> str:
    """Return why there is no network, without the objects that pip prints around it."""
    system = re.findall(r"\[Errno -?\d+\] [A-Za-z ,]+", said)
    return str(system[-1]) if system else next(line for line in said.splitlines() if _NO_NETWORK.search(line))[:300]


def _last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return ((errors or lines or ["it said nothing"])[-1])[:500]
