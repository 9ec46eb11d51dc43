"""Which isolated environment a job's model uses. Most use none, and pay one look at a folder for the answer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from wan_compat.supervisor.private_files import state_folder
from wan_compat.supervisor.repository_tree import identify

if TYPE_CHECKING:
    from wan_compat.supervisor.environments import Environment

RECORD_NAME = "environments.json"


def environment_of(model: str) -> Environment | None:
    """Return the environment that `install-deps` made for a model, looked at file by file; None for the usual one.

    Raises:
        StateUnsafe, StateCorrupt: It has one that cannot be used. Without it the model might run, with other packages
            than it was told to: that is for the user to decide.
        ModelNotFound, ModelUnreadable: As `identify`.
    """
    if not os.path.lexists(state_folder() / RECORD_NAME):
        return None
    from wan_compat.supervisor.environments import Environments

    return Environments().of_model(identify(model)[1])
