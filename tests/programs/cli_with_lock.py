"""`wan-compat`, but what may be installed is said by a lock of the test's, which no setting of a user could do.

python cli_with_lock.py LOCK ARGUMENTS...
"""

from __future__ import annotations

import sys
from pathlib import Path

from wan_compat.supervisor import dependency_manager
from wan_compat.supervisor.cli.main import run

if __name__ == "__main__":
    dependency_manager.LOCK_PATH = Path(sys.argv.pop(1))
    run()
