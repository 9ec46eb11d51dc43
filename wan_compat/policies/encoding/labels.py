"""What a video file says about its making: one line of JSON in its `comment`, at the level that was asked for.

none       nothing
minimal    the program, the model's name and commit, the seed and every number that was set; no text of the user's,
           no path: what somebody may see who gets the file
full       prompts and everything else that the request holds, paths excepted
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from wan_compat.policies.encoding.command import MAX_COMMENT_CHARS
from wan_compat.protocol.errors import clean_text
from wan_compat.protocol.video import MetadataLevel

GENERATOR = "wan-compat"
_TEXTS = ("prompt", "negative_prompt")


def label(
    level: MetadataLevel,
    *,
    version: str,
    model: str,
    revision: str | None,
    parameters: Mapping[str, Any],
) -> str:
    """Return the comment; ASCII, so that no reader can misunderstand it, and within the bound of a command line.

    Args:
        model: Its repository, or the last part of its path.
        parameters: Resolved, as in the result document.
    """
    if level is MetadataLevel.NONE:
        return ""
    said: dict[str, Any] = {"generator": f"{GENERATOR} {version}", "model": clean_text(model, 200)}
    if revision:
        said["revision"] = clean_text(revision, 80)
    numbers = {
        name: value for name, value in parameters.items() if isinstance(value, bool | int | float) and value is not None
    }
    said["parameters"] = numbers
    if level is MetadataLevel.FULL:
        said |= {name: clean_text(parameters[name], 20_000) for name in _TEXTS if parameters.get(name)}
    for shortened in (20_000, 2_000, 200):
        text = json.dumps(said, separators=(",", ":"), ensure_ascii=True)
        if len(text) <= MAX_COMMENT_CHARS:
            return text
        # Characters beyond ASCII take up to twelve each. The sidecar has the whole prompt.
        said |= {name: clean_text(said[name], shortened // 10) for name in _TEXTS if name in said}
    return text if len(text) <= MAX_COMMENT_CHARS else ""
