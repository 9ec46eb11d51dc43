"""What a prompt leaves in other text: names of files are made from prompts, and messages quote them.

A log that holds no prompts must not hold `0001-a-red-fox-in-snow-7.mp4` either. Found are the prompt itself and the
words of its beginning as names have them, joined by hyphens; a phrase from its middle is not.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from wan_compat.policies.redaction import MAX_DEPTH

MARK = "<prompt>"
# As much of a name is taken for a prompt's beginning; of less, only where it is all of the prompt.
_TELLING_CHARS = 8
_LEAST_CHARS = 3


def without_prompt(value: Any, prompt: str, *, _depth: int = 0) -> Any:
    """Return plain data with MARK where its texts have the prompt, or a name made of it."""
    if isinstance(value, str):
        return _text_without(value, prompt)
    if _depth >= MAX_DEPTH:
        return value
    if isinstance(value, dict):
        return {key: without_prompt(item, prompt, _depth=_depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_prompt(item, prompt, _depth=_depth + 1) for item in value]
    return value


def _text_without(text: str, prompt: str) -> str:
    quoted = prompt.strip()
    if len(quoted) >= (_LEAST_CHARS if not quoted.isascii() else _TELLING_CHARS):
        text = text.replace(quoted, MARK)
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode("ascii").lower()
    name = "-".join(re.findall(r"[a-z0-9]+", plain))
    if len(name) < _LEAST_CHARS:
        return text
    parts, end = [], 0
    for match in re.finditer(rf"(?<![a-z0-9]){re.escape(name[:_TELLING_CHARS])}", text, re.IGNORECASE | re.ASCII):
        if match.start() < end:
            continue
        stop = match.end()
        while (
            stop < len(text) and stop - match.start() < len(name) and text[stop].lower() == name[stop - match.start()]
        ):
            stop += 1
        is_short = len(name) < _TELLING_CHARS
        if is_short and stop < len(text) and text[stop].isalnum():
            continue  # another word that begins so
        parts += [text[end : match.start()], MARK]
        end = stop
    return "".join([*parts, text[end:]])
