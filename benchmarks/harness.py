"""Alternated arms, ratios of neighbours, bars, and the table.

Absolute times move by a factor of two with what else runs on a machine; the ratio of two things measured one right
after the other moves much less. So every benchmark has two arms that take turns, each pair of neighbours gives one
ratio, and a row shows their median. (The medians of the arms beside it need not have exactly that ratio.)
"""

from __future__ import annotations

import dataclasses
import enum
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class Kind(enum.StrEnum):
    """How a row is judged."""

    FASTER = "faster"  # reference / ours, at least the limit
    PART = "part"  # ours / reference, at most the limit
    ABSOLUTE = "absolute"  # ours, at most the limit, in the row's unit


@dataclasses.dataclass(frozen=True)
class Bar:
    """What a row must reach; without a limit it is shown and not judged."""

    kind: Kind
    limit: float | None = None

    def text(self, unit: str) -> str:
        if self.limit is None:
            return "-"
        if self.kind is Kind.FASTER:
            return f">= {self.limit:g}x"
        return f"<= {self.limit:g}" + (f" {unit}" if self.kind is Kind.ABSOLUTE else "")


def faster(limit: float | None = None) -> Bar:
    return Bar(Kind.FASTER, limit)


def part(limit: float | None = None) -> Bar:
    return Bar(Kind.PART, limit)


def at_most(limit: float | None = None) -> Bar:
    return Bar(Kind.ABSOLUTE, limit)


@dataclasses.dataclass(frozen=True)
class Samples:
    """What the arms measured, in turn; `reference` is empty where a bar is absolute."""

    ours: tuple[float, ...]
    reference: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: The benchmark's, with a suffix where it has several rows.
        unit: Of the samples: "s", "ms", "MB", "%", "bytes".
        note: What a reader must know to not misread the numbers.
    """

    name: str
    samples: Samples
    unit: str
    bar: Bar
    note: str = ""

    @property
    def ours(self) -> float:
        return statistics.median(self.samples.ours)

    @property
    def reference(self) -> float | None:
        return statistics.median(self.samples.reference) if self.samples.reference else None

    @property
    def ratio(self) -> float | None:
        """Return the median over the pairs, None where there is nothing to compare with."""
        return statistics.median(self.ratios) if self.samples.reference else None

    @property
    def ratios(self) -> tuple[float, ...]:
        """The ratio of each pair of neighbours, in turn."""
        pairs = zip(self.samples.ours, self.samples.reference, strict=True)
        if self.bar.kind is Kind.FASTER:
            return tuple(reference / ours for ours, reference in pairs)
        return tuple(ours / reference for ours, reference in pairs)

    @property
    def spread(self) -> tuple[float, float] | None:
        """The quartiles of the pairs' ratios: half of the turns lie between them. None with fewer than four pairs."""
        if len(self.samples.reference) < 4:
            return None
        lower, _, upper = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return lower, upper

    @property
    def ok(self) -> bool | None:
        """Return whether the bar is reached, None where there is none."""
        if self.bar.limit is None:
            return None
        if self.bar.kind is Kind.ABSOLUTE:
            return self.ours <= self.bar.limit
        assert self.ratio is not None
        return self.ratio >= self.bar.limit if self.bar.kind is Kind.FASTER else self.ratio <= self.bar.limit

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours,
            "reference": self.reference,
            "ratio": self.ratio,
            "spread": self.spread,
            "bar": {"kind": self.bar.kind.value, "limit": self.bar.limit},
            "ok": self.ok,
            "runs": len(self.samples.ours),
            "samples": dataclasses.asdict(self.samples),
            "note": self.note,
        }


class Skipped(Exception):
    """Raised by a benchmark that this machine does not permit; says why. Not a missed bar."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A benchmark without a result. An error counts as a missed bar, since nothing was shown; `ok` None is skipped."""

    name: str
    error: str
    ok: bool | None = False

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "error": self.error, "ok": self.ok}


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """`run` gets what arms.py shares and returns its rows. `optional` ones run only when they are named."""

    name: str
    title: str
    run: Callable[[Any], Iterable[Row]]
    optional: bool = False


def alternate(
    ours: Callable[[], float], reference: Callable[[], float], repeats: int = 5, *, warm_up: int = 0
) -> Samples:
    """Let both arms take turns, ours first; each call returns what it measured. `warm_up` turns are dropped."""
    turns = [(ours(), reference()) for _ in range(warm_up + repeats)][warm_up:]
    return Samples(tuple(pair[0] for pair in turns), tuple(pair[1] for pair in turns))


def timed(act: Callable[[], object]) -> float:
    """Return the seconds that one call took."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def run_all(benchmarks: Sequence[Benchmark], shared: Any) -> list[Row | Failure]:
    """Run one benchmark after the other; one that fails does not keep the others from running."""
    rows: list[Row | Failure] = []
    for number, benchmark in enumerate(benchmarks, 1):
        print(f"[{number}/{len(benchmarks)}] {benchmark.name}: {benchmark.title}", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            found: list[Row | Failure] = list(benchmark.run(shared))
        except Skipped as error:
            found = [Failure(benchmark.name, str(error), ok=None)]
        except Exception as error:  # noqa: BLE001 - it is shown, and counts as missed
            traceback.print_exc()
            found = [Failure(benchmark.name, f"{type(error).__name__}: {error}")]
        for row in found:
            print("      " + " | ".join(_cells(row)), file=sys.stderr)
        print(f"      {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        rows += found
    return rows


HEADER = ("name", "ours", "reference", "ratio", "bar", "runs", "ok")


def table(rows: Sequence[Row | Failure]) -> str:
    """Return the rows as a Markdown table, aligned, with the notes below."""
    lines = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    text = [line(lines[0]), rule, *(line(cells) for cells in lines[1:])]
    notes = [f"{row.name}: {row.note}" for row in rows if isinstance(row, Row) and row.note]
    errors = [f"{row.name}: {row.error}" for row in rows if isinstance(row, Failure)]
    return "\n".join([*text, *([""] if notes or errors else []), *notes, *errors])


def reached(rows: Sequence[Row | Failure]) -> bool:
    """Return whether no bar was missed."""
    return all(row.ok is not False for row in rows)


def _cells(row: Row | Failure) -> tuple[str, ...]:
    if isinstance(row, Failure):
        word, ok = ("failed", "NO") if row.ok is False else ("skipped", "-")
        return (row.name, word, "-", "-", "-", "-", ok)
    ratio = "-" if row.ratio is None else f"{row.ratio:.0f}x" if row.ratio >= 100 else f"{row.ratio:.3g}"
    if row.ratio is not None and row.bar.kind is Kind.FASTER and row.ratio < 100:
        ratio += "x"
    return (
        row.name,
        _quantity(row.ours, row.unit),
        "-" if row.reference is None else _quantity(row.reference, row.unit),
        ratio,
        row.bar.text(row.unit),
        str(len(row.samples.ours)),
        {True: "yes", False: "NO", None: "-"}[row.ok],
    )


def _quantity(value: float, unit: str) -> str:
    number = f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return f"{number} {unit}"
