"""Detection is right about every published model of the corpus, every look-alike, and their damaged forms.

The expectations are data (`tests/assets/corpus/expected.py`, `mutations.py`), written without looking at detection.
`python -m tests.accuracy` prints the figures for any number of mutants and any seed.
"""

from __future__ import annotations

import pytest

from tests import accuracy
from tests.assets.corpus.lookalikes import LOOKALIKES
from tests.assets.corpus.mutations import MUTATIONS
from tests.assets.corpus.repositories import BUILDERS

# So many mutants of each kind here; a thousand and more by the command.
MUTANTS_PER_KIND = 6
SEED = 20


@pytest.mark.parametrize("name", BUILDERS)
def test_entry_is_recognised(name, tmp_path):
    assert accuracy.judge_entry(name, tmp_path).problems == ()


@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalike_is_not_taken_for_wan(name, tmp_path):
    assert accuracy.judge_entry(name, tmp_path).problems == ()


@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutants_are_told_by_the_evidence_that_is_left(kind, tmp_path):
    outcomes = list(accuracy.mutants(MUTANTS_PER_KIND, SEED, tmp_path, kinds=[kind]))
    assert len(outcomes) == MUTANTS_PER_KIND
    assert [outcome for outcome in outcomes if outcome.problems] == []
