"""The real zygote where namespaces are refused, as a container's default profile does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # python -I does not look beside the program

from tests.programs.sandbox_without_namespaces import refuse_namespaces
from wan_compat.workers import zygote

if __name__ == "__main__":
    refuse_namespaces()
    zygote.main()
