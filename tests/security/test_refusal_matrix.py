"""Every way to bring code along is refused or never shown, and docs/refusal_matrix.md says so of each. [T12, T13]"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.assets.tiny_wan import tiny_model
from tests.sandbox.harness import PROGRAMS
from tests.security.refusal_matrix import BEGIN, DOCUMENT, END, Cell, contradictions, decide, table, try_way
from tests.security.ways import WAYS, Way, folder_of
from wan_compat.protocol.values import Mode

Cells = dict[str, dict[str, Cell]]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cells]:
    place = tmp_path_factory.mktemp("ways")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(place / "state"))
        yield {way.name: try_way(way, place / way.name) for way in WAYS}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_no_mode_runs_or_shows_what_it_must_not(way: Way, cells: Cells) -> None:
    assert contradictions(way, cells[way.name]) == []


def test_safe_mode_shows_what_a_plain_model_has_and_nothing_else(cells: Cells) -> None:
    plain = decide(tiny_model("t2v"), Mode.SAFE).decision
    assert plain is not None
    known = {fact.path for fact in plain.admitted}
    runs = {name: found["safe"].decision for name, found in cells.items()}
    for name, decision in runs.items():
        if decision is not None:
            assert {fact.path for fact in decision.admitted} <= known, name
            assert decision.pipeline == plain.pipeline, name
    assert sum(decision is not None for decision in runs.values()) >= 5


def test_approved_code_is_shown_as_the_very_files_that_were_hashed(cells: Cells) -> None:
    for way in WAYS:
        decision = cells[way.name]["trust, approved"].decision
        if decision is not None:
            assert decision.trust is not None
            assert set(decision.admitted) <= set(decision.trust.tree.facts)
            shown = {fact.path for fact in decision.admitted if fact.path.endswith(".py")}
            assert shown == ({path for path in way.danger if path.endswith(".py")} if way.runs_when_approved else set())


def test_the_page_is_current(cells: Cells) -> None:
    """If not: python -m tests.security.refusal_matrix --write"""
    assert DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0].strip() == table(cells).strip()


def test_without_us_the_libraries_do_what_the_page_says(tmp_path: Path) -> None:
    """The canaries are alive: what is refused would have run."""
    tried = [way for way in WAYS if way.call]
    orders = []
    for way in tried:
        folder = folder_of(way, tmp_path / way.name)
        for trust in (False, True):
            canary = tmp_path / f"{way.name}-{trust}.canary"
            orders.append({"call": way.call, "folder": str(folder), "trust": trust, "canary": str(canary)})
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / "library_canaries.py"), json.dumps(orders)],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sang = json.loads(done.stdout.splitlines()[-1])
    for index, way in enumerate(tried):
        expected = {"no": [False, False], "unasked": [True, True]}.get(way.libraries, [False, True])
        assert sang[2 * index : 2 * index + 2] == expected, (way.name, done.stderr[-3000:])
