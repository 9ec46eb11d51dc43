"""What a Python worker needs of the host's files: the interpreter, its packages, the system's libraries. Nothing more.

Not the prefix itself, not /usr, not a home: only the folders that code is imported or linked from. Of an editable
checkout only the package's own folder, under its real path, and not the repository around it.
"""

from __future__ import annotations

import glob
import os
import sys
import sysconfig
from collections.abc import Iterator

from wan_compat.sandbox.namespaces import INNER_ID
from wan_compat.sandbox.spec import SCRATCH_TARGET, Bind, Identity, StaticFile

_SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib64")
_LOADER_CACHE = "/etc/ld.so.cache"

# pytorch's cpuinfo library asks these for the kind and number of processors. Where they are missing, NNPACK and with it
# some convolutions fall back, and output bits change.
_PROCESSOR_FACTS = (
    "/proc/cpuinfo",
    "/sys/devices/system/cpu/possible",
    "/sys/devices/system/cpu/present",
    "/sys/devices/system/cpu/online",
)
_PROCESSOR_FACTS_BY_CPU = "/sys/devices/system/cpu/cpu[0-9]*/topology/*"  # read on aarch64 only
_MAX_FACT_BYTES = 1 << 20


def runtime_binds(site: str | None = None) -> tuple[Bind, ...]:
    """Return the binds for this very interpreter, parents first and without duplicates.

    Args:
        site: A folder of packages that comes before the interpreter's own, under the name by which they are imported.
    """
    chosen: list[Bind] = []
    folders = {*_system_folders(), *_python_folders(), *_package_folder(), *([site] if site is not None else [])}
    for path in sorted(folders, key=lambda path: path.count("/")):
        if not any(path == known.target or path.startswith(known.target + "/") for known in chosen):
            chosen.append(Bind(source=os.path.realpath(path), target=path, executable=True))
    if os.path.exists(_LOADER_CACHE):
        chosen.append(Bind(source=_LOADER_CACHE, target=_LOADER_CACHE))
    return tuple(chosen)


def interpreter_binds() -> tuple[Bind, ...]:
    """Return the binds that starting this interpreter inside a view needs besides `runtime_binds`.

    The program under its own name, and where it belongs to a virtual environment the file that says so, and no more of
    the folders that they lie in.
    """
    chosen = [Bind(source=os.path.realpath(sys.executable), target=os.path.abspath(sys.executable), executable=True)]
    configuration = os.path.join(sys.prefix, "pyvenv.cfg")
    if os.path.exists(configuration):
        chosen.append(Bind(source=os.path.realpath(configuration), target=configuration))
    return tuple(chosen)


def runtime_files(identity: Identity | None = None) -> tuple[StaticFile, ...]:
    """Return the small files that libraries look for: processor facts, and a passwd with the worker alone in it.

    Args:
        identity: Whom the worker will run as; getpass.getuser() (torch's compile cache) wants a name for it.
    """
    uid, gid = (identity.uid, identity.gid) if identity is not None else (INNER_ID, INNER_ID)
    files = [StaticFile("/etc/passwd", f"worker:x:{uid}:{gid}::{SCRATCH_TARGET}:/nonexistent\n".encode())]
    by_cpu = sorted(glob.glob(_PROCESSOR_FACTS_BY_CPU)) if os.uname().machine == "aarch64" else []
    for path in (*_PROCESSOR_FACTS, *by_cpu):
        try:
            with open(path, "rb") as file:
                files.append(StaticFile(path, file.read(_MAX_FACT_BYTES)))
        except OSError:  # not every architecture or container has each of them
            continue
    return tuple(files)


def _system_folders() -> Iterator[str]:
    # On a merged system /lib is a link to usr/lib. It is bound as well, under its own name: the loader's cache uses it.
    for path in _SYSTEM_LIBRARIES:
        if os.path.isdir(path):
            yield path


def _python_folders() -> Iterator[str]:
    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        yield from _both_names(sysconfig.get_path(name))
    for path in sys.path:
        # Site folders beyond the environment's own (Debian's dist-packages, a user site). Folders that a .pth file of
        # an editable install added are source trees of other projects, with whatever else lies in them: left out.
        if os.path.basename(path) in ("site-packages", "dist-packages"):
            yield from _both_names(path)
    # libpython and what it is linked with. A system Python has them in /usr/lib, which is there already.
    for name in ("LIBDIR", "LIBDEST"):
        path = sysconfig.get_config_var(name)
        if path and not is_system(path):
            yield from _both_names(path)


def _package_folder() -> Iterator[str]:
    yield from _both_names(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def _both_names(path: str | None) -> Iterator[str]:
    """Yield a folder as it is named and, if that leads through a link, as it really is: libraries use either."""
    if path and os.path.isdir(path):
        yield os.path.abspath(path)
        yield os.path.realpath(path)


def is_system(path: str) -> bool:
    """Whether a folder is, or lies in, one of the system's library folders, which every view has."""
    real = os.path.realpath(path)
    return real == "/usr/lib" or real.startswith("/usr/lib/")
