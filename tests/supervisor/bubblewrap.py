"""Whether workers inside a bubblewrap can be tried here, and by this user."""

from __future__ import annotations

import os

from wan_compat.protocol import errors
from wan_compat.sandbox import bwrap


def why_not() -> str:
    if os.geteuid() == 0:
        return "root makes its own namespaces, or may not make them at all; the ordinary user's run tests this"
    try:
        bwrap.find()
    except errors.SandboxEntryFailed as error:
        return error.message
    return ""
