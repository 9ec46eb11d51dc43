"""What reading one model may cost, all its files together, so that a thousand files at each file's limit cost no more.

Work and memory follow from these numbers, not from a clock: the same folder gives the same facts on every machine. The
largest real model, two sharded experts of 14 billion parameters and a text encoder, needs about a tenth of each.
"""

from __future__ import annotations

import dataclasses
import sys

from wan_compat.supervisor.inspection.problems import Exhausted


@dataclasses.dataclass
class Budget:
    """What is left. A folder of LoRAs has the most tensors (about 1,000 each)."""

    json_bytes: int = 4 << 20
    json_values: int = 120_000  # kept in memory, at up to 130 bytes each
    header_bytes: int = 24 << 20  # of safetensors files
    gguf_bytes: int = 64 << 20  # nearly all of them tokens, which are skipped
    header_values: int = 1_500_000  # parsed and dropped, at up to 0.5 microseconds each
    tensors: int = 120_000  # at 50 bytes each, beside their names and shapes, which most files share
    shapes: int = 20_000  # different ones within each file
    name_bytes: int = 8 << 20  # of different tensor names, as they lie in memory
    metadata_chars: int = 1 << 20
    array_strings: int = 3_000_000  # skipped one by one: ten quantisations of a text encoder have 2.6 million
    _names: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)

    def take(self, what: str, amount: int) -> None:
        """Take from what is left. Raises Exhausted, and leaves nothing, when it is not enough."""
        left = getattr(self, what) - amount
        setattr(self, what, max(left, 0))
        if left < 0:
            raise Exhausted(what)

    def keep_name(self, name: str) -> str:
        """Return the one copy of a tensor's name: a hundred LoRAs of one model have the same thousand names."""
        kept = self._names.setdefault(name, name)
        if kept is name:
            self.take("name_bytes", sys.getsizeof(name))
        return kept
