"""Are the files that a worker has mapped still those that were judged?

A worker gets the very files that inspection read: same device, inode, size and times, compared on the mount itself
(sandbox/view.py). Weights are mapped, not copied, so that a program of the user could still write into them. The
kernel then sets their times, and this is where it shows: after the load, and again before a result gets its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from wan_compat.policies.facts import FileFact
from wan_compat.supervisor.hashing import FileChanged


def check_unchanged(files: Iterable[FileFact]) -> tuple[str, ...]:
    """Compare every file with what was listed.

    Returns:
        Paths of files of which the ctime alone moved. A backup that makes hard links does that, and so does somebody
        who writes and sets the mtime back; which of them it was, only the bytes can tell.

    Raises:
        FileChanged: A file is gone, is another one, or was written to.
    """
    touched = []
    for fact in files:
        try:
            found = os.stat(fact.real_path, follow_symlinks=False)
        except OSError as error:
            raise _changed(fact, f"it cannot be looked at any more: {error.strerror}") from error
        if (found.st_dev, found.st_ino) != (fact.device, fact.inode):
            raise _changed(fact, "it is another file")
        if (found.st_size, found.st_mtime_ns) != (fact.size, fact.mtime_ns):
            raise _changed(fact, f"{fact.size} bytes then, {found.st_size} now, and written to in between")
        if fact.ctime_ns and found.st_ctime_ns != fact.ctime_ns:
            touched.append(fact.path)
    return tuple(touched)


def _changed(fact: FileFact, what: str) -> FileChanged:
    return FileChanged(
        f"{fact.real_path} changed while it was being used: {what}",
        hint="let whatever writes to the model finish, then try again; nothing was made of it",
    )
