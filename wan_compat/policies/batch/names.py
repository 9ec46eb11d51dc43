"""Names of outputs: made from a template with a fixed set of fields, one file name each, never a way out of the folder.

    {index:04}-{slug}-{seed}        index line seed width height frames steps: numbers    slug model key: short texts

Whatever a prompt says, only a to z, digits and hyphens of it get into a name. A template's own text is checked with
the rest of the name, once it is whole.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Mapping

from wan_compat.policies.encoding import FORMATS, format_for
from wan_compat.protocol.errors import InvalidRequest, clean_text

DEFAULT_TEMPLATE = "{index:04}-{slug}-{seed}"
MAX_TEMPLATE_CHARS = 200
# Of 255, which file systems allow: pictures beside the video and unfinished parts are named after it.
MAX_NAME_BYTES = 200
SLUG_CHARS = 48

NUMBERS = frozenset(("index", "line", "seed", "width", "height", "frames", "steps"))
TEXTS = frozenset(("slug", "model", "key"))
_PADDED = re.compile(r"0?[1-9]?[0-9]?")
# Windows takes these for devices, with any ending; a folder may be shared with it.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE | re.DOTALL)
_FOREIGN = frozenset('/\\:*?"<>|\0')
# What is written beside an output, and what the batch itself keeps in its folder.
_BESIDE = ("", ".json", ".poster.png", ".sheet.png", ".frames", ".frames.npy")
RESERVED = frozenset(("report.html", "summary.json"))


def check_template(template: str) -> None:
    """Raise ValueError with the reason if a template can never make a name."""
    if not template or len(template) > MAX_TEMPLATE_CHARS:
        raise ValueError(f"must have 1 to {MAX_TEMPLATE_CHARS} characters")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"is not a template: {error}") from error
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if name not in NUMBERS | TEXTS:
            known = ", ".join(sorted(NUMBERS | TEXTS))
            raise ValueError(f"has the field {clean_text(name, 40)!r}; known are {known}")
        if conversion or (spec and (name in TEXTS or _PADDED.fullmatch(spec) is None)):
            raise ValueError(f"writes {name} in a way that is not known; {{{name}}} is, and for numbers {{{name}:04}}")


def render(template: str, values: Mapping[str, int | str | None]) -> str:
    """Return the name that a checked template makes; a number that is not known is written as `auto`."""
    out: list[str] = []
    for text, name, spec, _ in string.Formatter().parse(template):
        out.append(text)
        if name is None:
            continue
        value = values.get(name)
        if value is None:
            out.append("auto")
        elif isinstance(value, int):
            out.append(format(value, f"{spec or ''}d"))
        else:
            out.append(slug(value))
    return "".join(out)


def slug(text: str) -> str:
    """Return lower-case ASCII words with hyphens between them; `video` where there are none."""
    plain = unicodedata.normalize("NFKD", text[: 8 * SLUG_CHARS]).encode("ascii", "ignore").decode("ascii").lower()
    return "-".join(re.findall(r"[a-z0-9]+", plain))[:SLUG_CHARS].strip("-") or "video"


def with_suffix(name: str, format_name: str | None) -> str:
    """Return the name with the usual ending of its format; as it is, where it has one or is a folder of pictures."""
    if any(name.lower().endswith(suffix) for form in FORMATS.values() for suffix in form.suffixes):
        return name
    if format_name is None:
        return f"{name}.mp4"
    try:
        form = format_for("", format_name) if format_name in ("png", "jpeg") else format_for(f".{format_name}")
    except InvalidRequest:
        return f"{name}.mp4"  # the format itself is what is wrong, and is told as that
    return name if form.pictures else name + form.suffix


def objection(name: str) -> str | None:
    """Return why a name cannot be an output's, None if it can."""
    if not name or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"the name {clean_text(name, 60)!r} has not 1 to {MAX_NAME_BYTES} bytes"
    found = None
    if foreign := sorted(_FOREIGN & set(name)):
        found = f"has {foreign[0]!r}; it must be the name of one file in the batch's folder"
    elif clean_text(name) != name or "\n" in name:
        found = "has characters that cannot be seen"
    elif unicodedata.normalize("NFC", name) != name:
        found = "is not in Unicode's normal form C"
    elif name[0] in ".-~ " or name[-1] in ". ":
        found = "must not begin with a dot, hyphen, tilde or space, nor end with a dot or space"
    elif _DEVICES.fullmatch(name):
        found = "is a device's name on Windows"
    elif folded(name) in RESERVED or name.lower().endswith((".part", ".json")):
        found = "is kept for the batch's own files"
    return None if found is None else f"the name {clean_text(name, 80)!r} {found}"


def folded(name: str) -> str:
    """Return what two names share that are one file on disks which do not tell cases apart."""
    return unicodedata.normalize("NFC", name).casefold()


def beside(name: str) -> tuple[str, ...]:
    """Return all names, folded, that an output may take: its own and those of what is written beside it."""
    return tuple(folded(name + ending) for ending in _BESIDE)
