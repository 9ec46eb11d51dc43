"""The picture of a `check` report: colours and a table on a terminal, the same words in columns elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from wan_compat.policies.findings import Finding, Severity
from wan_compat.policies.judgement.parts import several
from wan_compat.protocol.errors import clean_text
from wan_compat.supervisor.cli.quantities import show_bytes
from wan_compat.supervisor.cli.session import Session, has_color

if TYPE_CHECKING:
    from wan_compat.supervisor.check import ModelReport

_COLUMNS = ("component", "class", "dtype", "parameters", "size")
_NUMBERS = ("parameters", "size")
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "dim"}
MAX_FINDINGS = 12  # of one severity, unless -v


def show(report: ModelReport, session: Session, stream: TextIO) -> None:
    """Write the report to `stream`, stdout."""
    if has_color(stream):
        _show_rich(report, session, stream)
    else:
        session.say("\n".join(plain_lines(report, verbose=session.verbose)))


def plain_lines(report: ModelReport, *, verbose: bool) -> Iterator[str]:
    """Yield the report without colours, one line each."""
    yield headline(report)
    yield from (f"  {line}" for line in subtitle(report, verbose=verbose))
    rows = component_rows(report)
    if rows:
        yield ""
        widths = [max(len(row[column]) for row in (_COLUMNS, *rows)) for column in range(len(_COLUMNS))]
        for row in (_COLUMNS, *rows):
            cells = (
                cell.rjust(width) if name in _NUMBERS else cell.ljust(width)
                for name, cell, width in zip(_COLUMNS, row, widths, strict=True)
            )
            yield "  " + "  ".join(cells).rstrip()
    yield ""
    yield from (f"  {name:<6} {value}" for name, value in needs(report))
    for items, more in groups(report, verbose=verbose):
        yield ""
        for item in items:
            yield f"  {item.severity.value:<8} {words(item)}"
            if item.severity is not Severity.INFO:
                yield f"  {'':<8} -> {item.fix}"
        if more:
            yield f"  and {more} more of this kind (-v shows them)"


def headline(report: ModelReport) -> str:
    """Return what it is in one line."""
    architecture = report.architecture
    if architecture.is_wan is False:
        other = "" if architecture.architecture_type == "unknown" else architecture.architecture_type
        return f"Not a Wan model{': ' if other else ''}{other.replace('_', ' ')}"
    if architecture.is_wan is None:
        if not architecture.components:
            return "No model here"
        return f"No whole model: no denoiser{f' (of Wan {architecture.version})' if architecture.version else ''}"
    if architecture.variant is not None:
        name = architecture.variant
    elif architecture.architecture_type == "wan_family":
        name = "A relative of Wan that is not known"
    else:
        name = "A Wan model of a size of its own"
    if architecture.layout == "lora":
        return f"A LoRA for {name}"
    version = f", Wan {architecture.version}" if architecture.version else ""
    tasks = ", ".join(item.replace("_", " ") for item in architecture.capabilities)
    return f"{name}{version}{': ' + tasks if tasks else ''}"


def subtitle(report: ModelReport, *, verbose: bool) -> Iterator[str]:
    architecture = report.architecture
    pipeline = architecture.pipeline_class or "no pipeline in diffusers"
    yield f"{pipeline}, layout {architecture.layout}, confidence {architecture.confidence:.2f}"
    if architecture.candidates:
        yield f"could as well be {several([c for c in architecture.candidates if c != architecture.variant], 4)}"
    if report.task is not None:
        answer = f"yes, with {report.task.pipeline_class}" if report.task.supported else f"no: {report.task.reason}"
        yield f"{report.task.task}: {answer}"
    if verbose:
        yield from (clean_text(f"because {item.fact} ({item.source})", 300) for item in architecture.evidence)


def component_rows(report: ModelReport) -> list[tuple[str, ...]]:
    return [
        (
            clean_text(name or "(file)", 40),
            clean_text(item.class_name or "-", 50),
            item.dtype or "-",
            show_count(item.parameters) if item.parameters else "-",
            show_bytes(item.bytes) if item.bytes else "-",
        )
        for name, item in report.architecture.components.items()
    ]


def _columns_that_fit(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return which columns a terminal of `width` has room for: a narrow one gets fewer, and no words in pieces."""
    widths = [max(len(row[column]) for row in (_COLUMNS, *rows)) for column in range(len(_COLUMNS))]
    shown = list(range(len(_COLUMNS)))
    for name in ("parameters", "dtype", "class"):
        if sum(widths[column] + 2 for column in shown) - 2 <= width:
            break
        shown.remove(_COLUMNS.index(name))
    return shown


def needs(report: ModelReport) -> Iterator[tuple[str, str]]:
    """Yield what the model needs and what this machine has."""
    wanted, host = report.requirements, report.host
    parts = [f"{show_bytes(wanted.min_ram_mb * 1_000_000)} of memory for its weights"] if wanted.min_ram_mb else []
    if wanted.min_vram_mb and report.architecture.layout != "lora":
        plan = "" if wanted.plan in (None, "none") else f" with {wanted.plan} offload"
        parts.append(f"on a GPU {show_bytes(wanted.min_vram_mb * 1_000_000)} of VRAM{plan}")
    if wanted.min_diffusers_version:
        parts.append(f"diffusers >= {wanted.min_diffusers_version}")
    if parts:
        yield "needs", ", ".join(parts)
    diffusers = report.installed.versions.get("diffusers") or "not installed"
    free, total = host.memory_available_bytes / 1e9, host.memory_total_bytes / 1e9
    yield "here", f"{free:.1f} of {total:.1f} GB free, diffusers {diffusers}"


def groups(report: ModelReport, *, verbose: bool) -> Iterator[tuple[Sequence[Finding], int]]:
    """Yield the findings of each severity, and how many were left out."""
    for severity in Severity:
        # The subtitle names the look-alikes already.
        items = [item for item in report.findings if item.severity is severity and item.code != "ambiguous_variant"]
        shown = items if verbose else items[:MAX_FINDINGS]
        if items:
            yield shown, len(items) - len(shown)


def words(item: Finding) -> str:
    component = "" if item.component is None or item.message.startswith(item.component) else f"{item.component}: "
    return f"{component}{item.message}"


def show_count(count: int) -> str:
    """Return `1.42 B` or `127 M` parameters."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.0f} M" if count >= 1e6 else f"{count:,}"


def _show_rich(report: ModelReport, session: Session, stream: TextIO) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    console.print(Text(clean_text(headline(report)), style="bold"))
    for line in subtitle(report, verbose=session.verbose):
        console.print(Padding(Text(line, style="dim"), (0, 0, 0, 2)))
    rows = component_rows(report)
    if rows:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        shown = _columns_that_fit(rows, console.width - 2)
        for column in shown:
            name = _COLUMNS[column]
            table.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(row[column]) for column in shown))
        console.print(Padding(table, (1, 0, 0, 2)))
    console.print()
    for name, value in needs(report):
        console.print(Padding(Text.assemble((f"{name:<6} ", "dim"), value), (0, 0, 0, 2)))
    for items, more in groups(report, verbose=session.verbose):
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        for item in items:
            body = Text(words(item))
            if item.severity is not Severity.INFO:
                body.append(f"\n-> {item.fix}", style="cyan")
            table.add_row(Text(item.severity.value, style=_STYLES[item.severity]), body)
        if more:
            table.add_row("", Text(f"and {more} more of this kind (-v shows them)", style="dim"))
        console.print(Padding(table, (1, 0, 0, 2)))
