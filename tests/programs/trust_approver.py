"""Approves a number of sources in one trust store, as fast as it can."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.supervisor.test_trust_store import grant
from wan_compat.supervisor.trust_store import TrustStore

store = TrustStore(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    store.add(grant(f"{sys.argv[2]}/{number}"))
