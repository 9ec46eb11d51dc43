"""How a person writes LoRAs and quantised parts in one text: on the command line, and in the cells of a batch.

FILE[:weight][@high|@low]        PART=KIND, KIND with a backend before it or not: quanto:int8
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from wan_compat.protocol.errors import InvalidRequest

_LORA = re.compile(r"(?P<path>.+?)(:(?P<weight>[-+]?(\d+\.?\d*|\.\d+)))?(@(?P<expert>high|low))?", re.DOTALL)
_QUANTIZE = re.compile(r"(?P<part>[a-z_0-9]+)=(?P<kind>((bitsandbytes|torchao|quanto):)?(int8|int4|nf4|fp8))")


def parse_loras(texts: Iterable[str] | None) -> list[dict[str, Any]]:
    """Return the fields of LoraRequest for every text.

    A colon or an at-sign that is no weight or expert is part of the file's name.
    """
    found = []
    for text in texts or ():
        match = _LORA.fullmatch(text)
        if match is None:
            raise InvalidRequest("--lora is empty", hint="--lora FILE[:WEIGHT][@high|@low]")
        weight = float(match["weight"]) if match["weight"] is not None else 1.0
        if not -10 <= weight <= 10:
            raise InvalidRequest(f"--lora {text}: the weight is {weight:g}, outside -10..10")
        found.append({"path": match["path"], "weight": weight, "expert": match["expert"]})
    return found


def parse_quantize(texts: Iterable[str] | None) -> dict[str, str]:
    """Return part -> kind for every text."""
    found: dict[str, str] = {}
    for text in texts or ():
        match = _QUANTIZE.fullmatch(text)
        if match is None:
            raise InvalidRequest(
                f"--quantize {text} is not understood",
                hint="PART=KIND, such as transformer=int8 or text_encoder=quanto:fp8; kinds: int8, int4, nf4, fp8",
            )
        if match["part"] in found:
            raise InvalidRequest(f"--quantize names {match['part']} twice", hint="leave one of them out")
        found[match["part"]] = match["kind"]
    return found
