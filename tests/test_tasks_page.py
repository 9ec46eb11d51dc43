"""docs/tasks.md is the table of pipelines."""

from __future__ import annotations

from typing import get_args

from tools.tasks_page import MODELS, PAGE, page
from wan_compat.policies.pipelines import Weights


def test_the_page_is_in_step_with_the_table() -> None:
    assert PAGE.read_text() == page(), "run: python -m tools.tasks_page --write"


def test_every_kind_of_weights_is_told_by_the_models_that_have_it() -> None:
    assert set(MODELS) == set(get_args(Weights))
