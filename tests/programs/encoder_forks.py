"""An encoder that leaves a child in its session behind, which holds the error output open, and hangs."""

import os
import time

child = os.fork()
if child:
    os.write(2, f"child {child}\n".encode())
while True:
    time.sleep(60)
