"""The picture of a scan report: the verdict first, then what was found file by file, then what lies there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from wan_compat.policies.findings import Finding, Severity
from wan_compat.protocol.errors import clean_text
from wan_compat.supervisor.cli.quantities import show_bytes
from wan_compat.supervisor.cli.session import Session, has_color

if TYPE_CHECKING:
    from wan_compat.policies.scan.report import ScanReport

MAX_FILES = 20
MAX_PER_FILE = 8

_STYLES = {
    Severity.ERROR: "\x1b[1;31m",
    Severity.WARNING: "\x1b[33m",
    Severity.INFO: "\x1b[2m",
}
_LEVELS = {"low": "\x1b[1;32m", "medium": "\x1b[1;33m", "high": "\x1b[1;31m"}
_PLAIN = "\x1b[0m"
_HEADLINES = {
    "low": "Risk low: nothing was found.",
    "medium": "Risk medium: something to look at before use.",
    "high": "Risk high: do not use outside of safe mode.",
}


def show(report: ScanReport, session: Session, stream: TextIO) -> None:
    """Write the report to `stream`, stdout. Lines are cleaned before colours are added."""
    colors = has_color(stream)
    for style, line in lines(report, verbose=session.verbose):
        text = clean_text(line, 1000).replace("\n", "\\n")  # a name may have one, and must not begin a line of its own
        stream.write(f"{style}{text}{_PLAIN}\n" if colors and style else f"{text}\n")
    stream.flush()


def lines(report: ScanReport, *, verbose: bool) -> Iterator[tuple[str, str]]:
    """Yield each line with its colour ("" is none)."""
    shown = [item for item in report.findings if verbose or item.severity is not Severity.INFO]
    remarks = len(report.findings) - len(shown)
    yield _LEVELS[report.risk_level], _HEADLINES[report.risk_level]
    by_path: dict[str | None, list[Finding]] = {}
    for item in shown:
        by_path.setdefault(item.path, []).append(item)
    for number, (path, items) in enumerate(by_path.items()):
        if number >= MAX_FILES and not verbose:
            yield "", ""
            yield "", f"  ... and findings in {len(by_path) - MAX_FILES:,} more files (-v shows all)"
            break
        yield "", ""
        yield "", f"  {path or '(the whole)'}"
        yield from _findings(items, verbose=verbose)
    yield "", ""
    yield "", f"  {_formats(report)}"
    if remarks:
        yield "", f"  {remarks:,} remarks (-v shows them)"
    if report.content_hash is not None:
        yield "", f"  content {report.content_hash}"
    if not report.is_safe:
        yield "", ""
        yield "", "Safe mode shows a worker none of the refused files. `--json` has every finding."


def _findings(items: list[Finding], *, verbose: bool) -> Iterator[tuple[str, str]]:
    kept = items if verbose else items[:MAX_PER_FILE]
    for position, item in enumerate(kept):
        line = f"line {item.line}: " if item.line is not None else ""
        yield _STYLES[item.severity], f"    {item.severity.value:<8} {line}{item.message}  [{item.rule or item.code}]"
        # One fix for a run of findings that have the same.
        if item.severity is not Severity.INFO and (position + 1 == len(kept) or kept[position + 1].fix != item.fix):
            yield "", f"    {'':<8} -> {item.fix}"
    if len(items) > len(kept):
        yield "", f"    {'':<8} ... and {len(items) - len(kept)} more (-v shows all)"


def _formats(report: ScanReport) -> str:
    counts = Counter(file.format for file in report.files)
    sizes = sum(file.bytes for file in report.files)
    parts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.most_common(8))
    return f"{len(report.files):,} files, {show_bytes(sizes)}: {parts}" if report.files else "no files"
