"""What becomes of every way to bring code along (ways.py), in every mode: the table of docs/refusal_matrix.md.

    python -m tests.security.refusal_matrix            prints the table
    python -m tests.security.refusal_matrix --write    puts it into docs/refusal_matrix.md

The cells are the answers of the supervisor's own decision about the real folder, before any worker: refused by a code and
the file that it names, or decided, with the list of what a worker would be shown. Ends with 1 if a cell contradicts what
is claimed.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.sandbox.harness import REPOSITORY
from tests.security.ways import WAYS, Way, folder_of
from wan_compat.policies.models import ModelDecision
from wan_compat.protocol.errors import RefusedByPolicy, WanCompatError
from wan_compat.protocol.values import Mode
from wan_compat.supervisor.model_choice import choose_model, code_report
from wan_compat.supervisor.repository_tree import read_tree
from wan_compat.supervisor.trust_store import TrustStore, make_grant

DOCUMENT = REPOSITORY / "docs" / "refusal_matrix.md"
BEGIN = "<!-- refusals: begin (python -m tests.security.refusal_matrix --write) -->"
END = "<!-- refusals: end -->"

LIMITS = {"threads": 1, "memory_limit_bytes": 8 << 30}

# What one mode answers for the folder of a way; a mode gets its column by a line in COLUMNS.
Column = Callable[[Way, Path], "Cell"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """What becomes of one way in one mode: the error that refuses it, or what would be loaded."""

    refused: WanCompatError | None = None
    decision: ModelDecision | None = None

    @property
    def modules(self) -> list[str]:
        """The files of the repository whose classes would run."""
        return [] if self.decision is None else code_report(Mode.TRUST, self.decision).modules

    def shown(self, way: Way) -> list[str]:
        """The dangerous files of `way` that a worker would see."""
        admitted = [] if self.decision is None else [fact.path for fact in self.decision.admitted]
        return [path for path in way.danger if path in admitted and not path.endswith(".json")]

    def text(self, way: Way) -> str:
        if self.refused is not None:
            named = [path for path in _names(way) if re.search(rf"(?<!\w){re.escape(path)}", self.refused.message)]
            where = f" ({', '.join(f'`{path}`' for path in named)})" if named else ""
            return f"refused: `{self.refused.code}`{where}"
        if self.modules:
            return f"runs {', '.join(f'`{path}`' for path in self.modules)}"
        return f"**SHOWN**: {', '.join(self.shown(way))}" if self.shown(way) else way.harmless


def _names(way: Way) -> list[str]:
    documents = ["model_index.json", "modular_config.json", "modular_model_index.json"]
    documents += ["transformer/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"]
    return list(dict.fromkeys([*documents, *way.danger]))


def decide(folder: Path, mode: Mode, *, restricted: bool = False) -> Cell:
    try:
        return Cell(decision=choose_model(str(folder), mode, restricted=restricted, **LIMITS))
    except WanCompatError as error:
        return Cell(refused=error)


def _safe(way: Way, folder: Path) -> Cell:
    return decide(folder, Mode.SAFE)


def _restricted(way: Way, folder: Path) -> Cell:
    return decide(folder, Mode.SAFE, restricted=True)


def _unapproved(way: Way, folder: Path) -> Cell:
    return decide(folder, Mode.TRUST)


def _approved(way: Way, folder: Path) -> Cell:
    TrustStore().add(make_grant(read_tree(str(folder)), imports=[], risks=[]))
    return decide(folder, Mode.TRUST)


COLUMNS: dict[str, Column] = {
    "safe": _safe,
    "safe, `--restricted`": _restricted,
    "trust, not approved": _unapproved,
    "trust, approved": _approved,
}


def try_way(way: Way, place: Path) -> dict[str, Cell]:
    """Return the cells of one way. The state folder must be the caller's own: approvals are written to it."""
    folder = folder_of(way, place)
    return {name: column(way, folder) for name, column in COLUMNS.items()}


def contradictions(way: Way, cells: dict[str, Cell]) -> list[str]:
    """Return what is not as claimed: nothing dangerous is shown in safe mode, nothing runs without an approval."""
    wrong = []
    safe, unapproved, approved = (cells[name] for name in ("safe", "trust, not approved", "trust, approved"))
    if safe.modules or safe.shown(way):
        wrong.append(f"{way.name}: safe mode shows {safe.shown(way)}")
    if safe.refused is None and way.runs_when_approved:
        wrong.append(f"{way.name}: safe mode runs something else than the repository says, in silence")
    if way.runs_when_approved and (safe.refused is None or safe.refused.exit_code != RefusedByPolicy.exit_code):
        wrong.append(f"{way.name}: safe mode refuses with {safe.refused}")
    if safe.refused is not None and "`" not in safe.text(way).partition("(")[2]:
        wrong.append(f"{way.name}: safe mode names no file: {safe.refused.message}")
    restricted = cells["safe, `--restricted`"]
    if (restricted.refused is None) != (safe.refused is None) or restricted.shown(way):
        wrong.append(f"{way.name}: restricted, it becomes {restricted}")
    if unapproved.refused is None or unapproved.refused.code != "trust_refused":
        wrong.append(f"{way.name}: unapproved, and yet {unapproved}")
    if bool(approved.modules) != way.runs_when_approved:
        wrong.append(f"{way.name}: approved, it runs {approved.modules} ({approved.refused})")
    if not way.runs_when_approved and approved.shown(way):
        wrong.append(f"{way.name}: needs no code, and is shown {approved.shown(way)}")
    return wrong


def table(cells: dict[str, dict[str, Cell]]) -> str:
    """Return the table, one line per way."""
    lines = [f"| way | the libraries by themselves | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for way in WAYS:
        answers = " | ".join(cells[way.name][column].text(way) for column in COLUMNS)
        lines.append(f"| {way.title} | {LIBRARIES[way.libraries]} | {answers} |")
    return "\n".join(lines) + "\n"


LIBRARIES = {
    "unasked": "run it, unasked",
    "with trust_remote_code": "run it with `trust_remote_code=True`",
    "with weights_only": "run it with `weights_only=False`",
    "with allow_pickle": "run it with `allow_pickle=True`",
    "applied": "render it when it is applied",
    "no": "do not follow it",
    "needs the network": "not tried: it needs the network",
}


def replace_table(document: str, text: str) -> str:
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def main() -> int:
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_STATE_HOME"] = os.path.join(place, "state")
        cells = {way.name: try_way(way, Path(place) / way.name) for way in WAYS}
    wrong = [line for way in WAYS for line in contradictions(way, cells[way.name])]
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    if "--write" in sys.argv and not wrong:
        DOCUMENT.write_text(replace_table(DOCUMENT.read_text(), table(cells)))
    elif "--write" not in sys.argv:
        print(table(cells), end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
