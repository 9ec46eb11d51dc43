"""`wan-compat ARGUMENTS` with workers that take their time and need no torch (misbehaving_zygote.py)."""

from pathlib import Path

from wan_compat.supervisor import client
from wan_compat.supervisor.cli.main import run

client.ZYGOTE_PROGRAM = (str(Path(__file__).parent / "misbehaving_zygote.py"), "slow")
run()
