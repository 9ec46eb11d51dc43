"""An encoder that never reads a frame and ignores being asked to end."""

import signal
import time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    time.sleep(60)
