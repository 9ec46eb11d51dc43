"""Makes every attack without the sandbox, with all of it, as repository code, and with each claimed layer alone, and
writes what came of it as the table of docs/containment.md.

    python -m tests.security.ablation            prints the table
    python -m tests.security.ablation --write    puts it into docs/containment.md
    python -m tests.security.ablation --lag      measures how late polling notices memory (takes half a minute)

Ends with 1 if an attack succeeded where it must not, or failed where it should work.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.sandbox.harness import REPOSITORY, full_layers
from tests.security.attacks import (
    CASES,
    SECRET,
    Case,
    Surroundings,
    attempt,
    impossible,
    make_surroundings,
    only,
    was_killed,
    why_not,
    without,
)
from tests.security.repository import Repository, repository
from wan_compat.supervisor.memory_watch import POLL_S, MemoryWatch

DOCUMENT = REPOSITORY / "docs" / "containment.md"
BEGIN, END = "<!-- attacks: begin (python -m tests.security.ablation --write) -->", "<!-- attacks: end -->"

ROWS = {
    "T1": "Reading files outside the view",
    "T2": "Writing outside scratch",
    "T3": "Network",
    "T4": "Secrets in memory",
    "T5": "Other processes",
    "T6": "New programs, processes, rights",
    "T7": "Kernel surface",
    "T8": "Resources",
    "T9": "Its end",
    "T11": "Frames",
}


class Table:
    """The table as it is being made; `wrong` are the cells that contradict the claim."""

    def __init__(self, around: Surroundings, hostile: Repository) -> None:
        self._around, self._hostile = around, hostile
        self._notes: list[str] = []
        self.wrong: list[str] = []

    def write(self) -> str:
        lines: list[str] = []
        for row, title in ROWS.items():
            lines += [f"### {row}: {title}", "", "| attack | without | all layers | as repository code | alone |"]
            lines += ["|---|---|---|---|---|"]
            lines += [self._line(case) for case in CASES if case.row == row] + [""]
        lines += [f"{number}. {note}." for number, note in enumerate(self._notes, 1)]
        return "\n".join(lines) + "\n"

    def _line(self, case: Case) -> str:
        print(f"{case.row} {case.title}", file=sys.stderr, flush=True)
        if reason := why_not(case):
            return f"| {case.title} | skipped: {reason} | | | |"
        inside = self._cell(case, "as repository code", self._hostile.attempt(case), stopped=True)
        if case.construction:
            return f"| {case.title} | works, see note{self._note(case.construction)} | | {inside} | |"
        free = f"not possible{self._note(impossible(case))}" if impossible(case) else ""
        free = free or self._cell(case, "without", attempt(case, without(case), self._around), stopped=False)
        every = self._cell(case, "all layers", attempt(case, full_layers(), self._around), stopped=True)
        alone = []
        for layer in case.stopped_by:
            if reason := why_not(case, layer):
                alone.append(f"{layer.value}: skipped ({reason})")
                continue
            answer = attempt(case, only(case, layer), self._around)
            alone.append(f"{layer.value}: {self._cell(case, layer.value, answer, stopped=True)}")
        return f"| {case.title} | {free} | {every} | {inside} | {'; '.join(alone)} |"

    def _cell(self, case: Case, column: str, answer: dict[str, Any], *, stopped: bool) -> str:
        if bool(answer["gained"]) == stopped:
            self.wrong.append(f"{case.title}, {column}: {answer}")
            return "**WORKS**" if stopped else "**FAILS**"
        if not stopped:
            return "works"
        call = answer.get("killed")
        if call and call not in ("SIGSYS", "memory"):
            return f"killed: `{call}`"
        return "killed" if call == "SIGSYS" or ("signal" in answer and was_killed(answer)) else "refused"

    def _note(self, text: str) -> str:
        if text not in self._notes:
            self._notes.append(text)
        return f" ({self._notes.index(text) + 1})"


def replace_table(document: str, table: str) -> str:
    """Return the document with this table between its marks."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


# Fills private memory as fast as it can, without any limit of its own.
_FILLER = "import mmap\nheld = []\nwhile True: held.append(b'x' * (1 << 22))"


def measure_lag(cap_bytes: int, times: int) -> list[int]:
    """Return by how many bytes each of `times` processes was over the cap when polling had killed it."""
    over = []
    for _ in range(times):
        with subprocess.Popen([sys.executable, "-c", _FILLER], stdin=subprocess.DEVNULL) as process:
            watch = MemoryWatch(process.pid)
            while watch.poll() <= cap_bytes:
                time.sleep(POLL_S)
            process.kill()
            process.wait()
        over.append(watch.used_bytes - cap_bytes)
    return over


def main() -> int:
    if "--lag" in sys.argv:
        over = measure_lag(256 << 20, 20)
        print(f"over the cap: median {statistics.median(over) / 1e6:.0f} MB, worst {max(over) / 1e6:.0f} MB")
        return 0
    os.environ["WAN_TEST_TOKEN"] = SECRET  # what the search of a worker's memory must not find
    with make_surroundings() as around, repository(around) as hostile:
        table = Table(around, hostile)
        text = table.write()
    for line in table.wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    if "--write" in sys.argv and not table.wrong:
        Path(DOCUMENT).write_text(replace_table(DOCUMENT.read_text(), text))
    elif "--write" not in sys.argv:
        print(text, end="")
    return 1 if table.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
