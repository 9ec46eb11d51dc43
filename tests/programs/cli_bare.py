"""`wan-compat` where no package of a feature is installed, whatever this machine has for other tests.

python cli_bare.py LOCK ARGUMENTS...

LOCK says what may be installed, which no setting of a user could do; `-` is the one that comes with the package.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.assets.tiny_wheels import without_features
from wan_compat.supervisor import dependency_manager
from wan_compat.supervisor.cli.main import run

if __name__ == "__main__":
    lock = sys.argv.pop(1)
    if lock != "-":
        dependency_manager.LOCK_PATH = Path(lock)
    dependency_manager.find_distributions = without_features(dependency_manager.find_distributions)
    run()
