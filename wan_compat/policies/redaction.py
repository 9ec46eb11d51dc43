"""Redaction: what a report must not carry when somebody pastes it into a public issue.

    home folders   the usual ones and the user's own become `~`, so that no name is kept
    secrets        tokens by their known shapes, credentials inside URLs, values behind names such as `api_key=`
    prompts        text under the keys of PROMPT_KEYS becomes its length

Shapes, not certainty: an unknown kind of secret in free text cannot be seen. So free text that users typed (prompts) is
dropped by its key, and everything else in a report comes from the model and from us.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from wan_compat.protocol.errors import clean_text

MAX_TEXT_CHARS = 4000
MAX_ITEMS = 1000
MAX_DEPTH = 12

PROMPT_KEYS = frozenset({"prompt", "negative_prompt", "prompts", "text"})

# Prefixes of the issuers' own documentation: Hugging Face, GitHub, OpenAI and kin, AWS, Google, Slack; and JWTs.
_TOKENS = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[\w-]{16,}|AKIA[A-Z0-9]{12,}"
    r"|AIza[\w-]{20,}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s:@]{1,200}(:[^/\s@]{0,200})?@")
_NAMED = re.compile(
    r"(?i)\b([\w-]{0,40}(?:token|secret|password|passwd|api[_-]?key))(\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|\S+)"
)
_HOME = re.compile(r"(?<![\w.-])/(?:home|Users)/[^/\s:'\"]+|(?<![\w.-])/root(?=[/\s:'\"]|$)")


def redact_text(text: str, home: str | None = None) -> str:
    """Return `text` cleaned for every sink, without home folders and secrets, at most MAX_TEXT_CHARS long."""
    text = clean_text(text, MAX_TEXT_CHARS)
    if home and len(home) > 1:
        # Not inside a longer name: the home of "ann" must not shorten that of "anna".
        text = re.sub(re.escape(home.rstrip("/")) + r"(?=[/\s:'\"]|$)", "~", text)
    text = _HOME.sub("~", text)
    text = _URL_CREDENTIALS.sub("<redacted>@", text)
    text = _BEARER.sub(r"\1 <redacted>", text)
    text = _TOKENS.sub("<redacted>", text)
    return _NAMED.sub(r"\1\2<redacted>", text)


def redact(value: Any, home: str | None = None, *, _depth: int = 0) -> Any:
    """Return plain data with every text redacted, keys included; prompts become their length.

    Deeper or longer than the limits is cut, with a text in its place that says so.
    """
    if isinstance(value, str):
        return redact_text(value, home)
    if value is None or isinstance(value, bool | int | float):
        return value
    if _depth >= MAX_DEPTH:
        return "<nested deeper than a report needs>"
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, item in list(value.items())[:MAX_ITEMS]:
            name = redact_text(str(key), home)
            hidden = str(key).lower() in PROMPT_KEYS and item is not None
            found[name] = _length(item) if hidden else redact(item, home, _depth=_depth + 1)
        if len(value) > MAX_ITEMS:
            found["..."] = f"{len(value) - MAX_ITEMS} more"
        return found
    if isinstance(value, Sequence | set | frozenset):
        items = [redact(item, home, _depth=_depth + 1) for item in list(value)[:MAX_ITEMS]]
        return items if len(value) <= MAX_ITEMS else [*items, f"<{len(value) - MAX_ITEMS} more>"]
    return redact_text(repr(value), home)


def _length(item: Any) -> str:
    return f"<{len(item)} characters>" if isinstance(item, str) else "<redacted>"
