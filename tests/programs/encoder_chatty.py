"""An encoder that says far more than a pipe holds, with terminal escapes, and only then reads its frames."""

import os
import sys

for number in range(20_000):
    os.write(2, f"\x1b[31mcomplaint {number}\x1b[0m\n".encode())
while os.read(0, 1 << 16):
    pass
sys.exit(int(sys.argv[1]))
