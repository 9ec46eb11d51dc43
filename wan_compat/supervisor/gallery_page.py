"""The page of the gallery: entries in, one HTML document out. Nothing in it comes from anywhere else.

    template     wan_compat/data/gallery/report.html with report.css and report.js put in
    policy       a Content-Security-Policy that permits this script and this style by their hashes, pictures and videos
                 from the page's own place, and nothing else: no address, no frame, no form, no inline handler
    text         of users, models and workers: cleaned, without home folders, escaped; it never becomes code, and the
                 script writes text as text only

The cards are written here and not by the script, so that the page is whole without it; the script filters, sorts and
plays.
"""

from __future__ import annotations

import base64
import collections
import datetime
import functools
import hashlib
import html
import math
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from wan_compat._version import __version__
from wan_compat.policies.redaction import redact_text
from wan_compat.protocol.errors import clean_text

if TYPE_CHECKING:
    from wan_compat.supervisor.gallery import GalleryEntry, State

STATES: tuple[State, ...] = ("done", "failed", "waiting")

MAX_PROMPT_CHARS = 20_000
MAX_SHOWN_RECOVERIES = 20
MAX_SHOWN_CODES = 12

# What a browser may play or show; everything else is a link.
_VIDEO = (".mp4", ".m4v", ".webm", ".mov", ".mkv")
_PICTURE = (".gif", ".webp", ".png", ".jpg", ".jpeg")

# Phases in their order, and what they are called. What is not among them is shown by its own name.
_PHASES = {
    "worker_start_s": "start",
    "load_s": "load",
    "text_encode_s": "text",
    "denoise_s": "denoise",
    "decode_s": "decode",
    "encode_s": "encode",
}
# Overlap with others, or are their sum.
_NOT_PHASES = ("total_s", "first_frame_s")


class Card(NamedTuple):
    """An entry with what was found for it: its output, known to lie in the folder, and a picture's source."""

    entry: GalleryEntry
    output: str | None
    poster: str | None


def render(cards: Sequence[Card], title: str) -> str:
    """Return the document."""
    parts = {
        "title": _text(title, 300),
        "policy": _policy(),
        "style": _asset("report.css"),
        "script": _asset("report.js"),
        "summary": _summary([card.entry for card in cards]),
        "models": _models([card.entry.model for card in cards]),
        "codes": _codes([card.entry for card in cards]),
        "cards": "\n".join(map(_card, cards)),
        "written": f"wan-compat {__version__}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
    }
    # In one pass, so that a prompt which looks like a mark of ours stays a prompt.
    return re.sub(r"@@([a-z]+)@@", lambda found: parts[found[1]], _asset("report.html"))


@functools.cache
def _asset(name: str) -> str:
    return resources.files("wan_compat").joinpath("data", "gallery", name).read_text("utf-8")


def _policy() -> str:
    def digest(name: str) -> str:
        return base64.b64encode(hashlib.sha256(_asset(name).encode("utf-8")).digest()).decode("ascii")

    # A page opened as a file has no origin of its own, so 'self' is nothing there, and file: is named as well.
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'sha256-{digest('report.js')}'",
            f"style-src 'sha256-{digest('report.css')}'",
            "img-src 'self' file: data:",
            "media-src 'self' file:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


# -- the head of the page ----------------------------------------------------------------------------------------------


def _summary(entries: Sequence[GalleryEntry]) -> str:
    count = collections.Counter(entry.state for entry in entries)
    total_s = sum(_number(entry.seconds) or 0.0 for entry in entries)
    timed = [
        (seconds, entry.num_frames)
        for entry in entries
        if entry.state == "done" and entry.num_frames and (seconds := _number(entry.seconds))
    ]
    frames = sum(num_frames for _, num_frames in timed)
    figures = [
        ("done", str(count["done"]), "done"),
        ("failed", str(count["failed"]), "failed"),
        ("waiting", str(count["waiting"]), "waiting"),
        ("time", duration(total_s), "total time"),
        ("pace", duration(sum(seconds for seconds, _ in timed) / frames) if frames else "–", "per frame"),
        ("frames", f"{frames:,}".replace(",", " "), "frames"),
    ]
    tiles = "".join(
        f'<div class="figure {name}{"" if value != "0" else " none"}"><b>{value}</b><span>{label}</span></div>'
        for name, value, label in figures
    )
    return f'<div class="figures">{tiles}</div>{_share_bar(count, len(entries))}'


def _share_bar(count: Mapping[State, int], total: int) -> str:
    states = [(name, count.get(name, 0)) for name in STATES]
    label = ", ".join(f"{number} {name}" for name, number in states)
    return _bar(states, total, "share", label)


def _bar(parts: Iterable[tuple[str, float]], total: float, kind: str, label: str) -> str:
    """Return a bar of coloured parts. As SVG: its lengths are attributes, and style attributes are forbidden here."""
    rects, left = [], 0.0
    for name, value in parts:
        width = 100 * value / total if total > 0 else 0.0
        if width > 0:
            rects.append(f'<rect class="{name}" x="{left:.2f}" width="{width:.2f}" height="1"/>')
        left += width
    return (
        f'<svg class="bar {kind}" viewBox="0 0 100 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{_text(label)}">{"".join(rects)}</svg>'
    )


def _models(models: Iterable[str]) -> str:
    names = sorted({redacted(model) for model in models if model})
    return "".join(f'<option value="{_text(name)}">{_text(short_model(name))}</option>' for name in names)


def _codes(entries: Iterable[GalleryEntry]) -> str:
    count = collections.Counter(entry.error_code for entry in entries if entry.error_code)
    return "".join(
        f'<button type="button" class="code" data-code="{_text(code, 64)}">{_text(code, 64)} <b>{number}</b></button>'
        for code, number in count.most_common(MAX_SHOWN_CODES)
    )


# -- a card ------------------------------------------------------------------------------------------------------------


def _card(card: Card) -> str:
    entry = card.entry
    state = entry.state if entry.state in STATES else "waiting"
    model = _text(redacted(entry.model))
    seed = "" if entry.seed is None else str(int(entry.seed))
    attributes = {
        "state": state,
        "index": str(int(entry.index)),
        "model": model,
        "seed": seed,
        "seconds": str(_number(entry.seconds) or 0.0),
        "code": _text(entry.error_code or "", 64),
    }
    data = " ".join(f'data-{name}="{value}"' for name, value in attributes.items())
    # A label that is the file's name stands among the details already.
    body = f'<p class="label">{_text(entry.label)}</p>' if entry.label and entry.label != entry.output else ""
    body += f'<p class="prompt" dir="auto">{_text(entry.prompt, MAX_PROMPT_CHARS) or "<i>no prompt</i>"}</p>'
    if state == "failed":
        code, error = _text(entry.error_code or "unknown", 64), _text(redacted(entry.error or ""))
        body += f'<p class="error"><code>{code}</code> {error}</p>'
    body += _chips(entry) + _details(entry)
    return f'<article class="card {state}" {data}>{_media(card, state)}<div class="body">{body}</div></article>'


def _media(card: Card, state: str) -> str:
    entry = card.entry
    badges = f'<span class="number">{int(entry.index)}</span>'
    if entry.mode == "trust":
        badges += '<span class="trust">TRUST</span>'
    if card.output is None or state != "done":
        mark = {"failed": "✕", "waiting": "⋯"}.get(state, "–")
        word = _text(entry.error_code or "failed", 64) if state == "failed" else state
        tile = f'{badges}<span class="mark" aria-hidden="true">{mark}</span><span>{word}</span>'
        return f'<div class="media empty">{tile}</div>'
    suffix = os.path.splitext(card.output)[1].lower()
    kind = "video" if suffix in _VIDEO else "picture" if suffix in _PICTURE else "file"
    name = _text(os.path.basename(card.output), 300)
    picture = '<span class="mark" aria-hidden="true">▶</span>'
    if card.poster is not None:
        source = card.poster if card.poster.startswith("data:") else address(card.poster)
        picture = f'<img src="{html.escape(source)}" alt="" loading="lazy" decoding="async">'
    # What is nearly the tile's shape fills it; everything else is shown whole.
    shape = " wide" if entry.width and entry.height and 1.4 < entry.width / entry.height < 2.2 else ""
    length = (
        f"{entry.num_frames / entry.fps:.1f} s" if entry.num_frames and entry.fps else suffix.lstrip(".") or "folder"
    )
    return (
        f'<a class="media{shape}" data-kind="{kind}" href="{html.escape(address(card.output))}" title="{name}" '
        f'aria-label="Play {name}">{badges}{picture}<span class="length">{_text(length)}</span></a>'
    )


def _chips(entry: GalleryEntry) -> str:
    chips = []
    if entry.seed is not None:
        chips.append(f'<button type="button" class="seed" title="Only this seed">seed {int(entry.seed)}</button>')
    if entry.model:
        model = redacted(entry.model)
        chips.append(f'<span title="{_text(model)}">{_text(short_model(model))}</span>')
    if entry.width and entry.height:
        chips.append(f"<span>{int(entry.width)}×{int(entry.height)}</span>")
    if entry.num_frames:
        chips.append(f"<span>{int(entry.num_frames)} f</span>")
    seconds = _number(entry.seconds)
    if seconds:
        chips.append(f'<span class="took">{duration(seconds)}</span>')
    if entry.tier:
        chips.append(f'<span title="Sandbox tier">tier {_text(entry.tier, 8)}</span>')
    if entry.recovery:
        chips.append('<span class="recovered" title="Something failed and was survived">recovered</span>')
    return f'<div class="chips">{"".join(chips)}</div>' if chips else ""


def _details(entry: GalleryEntry) -> str:
    rows: list[tuple[str, str]] = []
    if entry.negative_prompt:
        rows.append(("negative", f'<span dir="auto">{_text(entry.negative_prompt, MAX_PROMPT_CHARS)}</span>'))
    if entry.model:
        rows.append(("model", _text(redacted(entry.model))))
    if entry.output:
        rows.append(("file", _text(entry.output)))
    if entry.fps:
        rows.append(("rate", f"{float(entry.fps):g} fps"))
    if entry.format:
        rows.append(("format", _text(entry.format, 32)))
    rows.append(("mode", _text(entry.mode, 16)))
    phases = _phases(entry.timings)
    if phases:
        total = sum(seconds for _, _, seconds in phases)
        label = ", ".join(f"{word} {seconds:.2f} s" for _, word, seconds in phases)
        bar = _bar([(f"p{number}", seconds) for number, _, seconds in phases], total, "phases", label)
        words = "".join(
            f'<li class="p{number}">{_text(word, 40)} {duration(seconds)}</li>' for number, word, seconds in phases
        )
        rows.append(("timings", f'{bar}<ul class="phases">{words}</ul>'))
    if entry.recovery:
        steps = "".join(
            f"<li>{_text(redacted(str(step.get('error', ''))))} → {_text(redacted(str(step.get('action', ''))))}: "
            f"{_text(redacted(str(step.get('outcome', ''))))}</li>"
            for step in entry.recovery[:MAX_SHOWN_RECOVERIES]
        )
        rows.append(("recovery", f"<ul>{steps}</ul>"))
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    return f"<details><summary>Details</summary><dl>{listed}</dl></details>"


def _phases(timings: Mapping[str, float]) -> list[tuple[int, str, float]]:
    """Return (number of its colour, word, seconds) of every phase that took time, in their order."""
    known = list(_PHASES)
    found = []
    for name in (*known, *(name for name in timings if name not in known and name not in _NOT_PHASES)):
        seconds = _number(timings.get(name))
        if seconds and seconds > 0:
            number = known.index(name) if name in known else len(known)
            found.append((number, _PHASES.get(name, name.removesuffix("_s").replace("_", " ")), seconds))
    return found


# -- words -------------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Return `40 ms`, `0.42 s`, `42 s`, `3 min 05 s` or `2 h 03 min`."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def short_model(model: str) -> str:
    """Return a model's name without its folders: of a Hugging Face cache `org/name`, else the last part."""
    cached = re.search(r"models--([^/]+?)--([^/]+)", model)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return model if model.count("/") == 1 and model[0] not in "/.~" else model.rstrip("/").rpartition("/")[2] or model


def address(name: str) -> str:
    """Return the relative address of a file: every character that means something in one is encoded, and `./` stands
    before it, so that no name can be taken for a scheme such as `javascript:`."""
    return "./" + urllib.parse.quote(os.fsencode(name), safe="/")


def redacted(text: str) -> str:
    """Return text without home folders and tokens: reports are passed on."""
    return redact_text(text, os.path.expanduser("~"))


def _text(text: str, limit: int = 4000) -> str:
    """Return text of anybody's as HTML that is nothing but text, also inside an attribute."""
    return html.escape(clean_text(text, limit))


def _number(value: object) -> float | None:
    """Return a finite number, None for everything else: figures come from a journal that may be damaged."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    return None
