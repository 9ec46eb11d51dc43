"""Writes to a registry as fast as it can: `registry_writer.py PATH NAME COUNT`. Says "ready" before the first write."""

import sys

from wan_compat.policies.registry_document import RegistryDocument, RegistryEntry
from wan_compat.supervisor.registry import CompatibilityRegistry

path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
registry = CompatibilityRegistry(path)
print("ready", flush=True)
for number in range(count):
    entry = RegistryEntry(notes=(f"{name} {number} " + "x" * 500,) * 20)
    registry.apply(RegistryDocument(models={f"{name}/m{number % 40}": entry}))
