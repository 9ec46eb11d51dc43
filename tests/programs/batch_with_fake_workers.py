"""`wan-compat` with workers of misbehaving_zygote.py: really forked, really confined, without torch.

python batch_with_fake_workers.py BEHAVIOUR batch run FILE --out DIR ...
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from wan_compat.supervisor import client
from wan_compat.supervisor.cli import main

if __name__ == "__main__":
    client.ZYGOTE_PROGRAM = (str(Path(__file__).with_name("misbehaving_zygote.py")), sys.argv.pop(1))
    main.run()
