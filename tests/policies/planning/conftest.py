from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest

from tests.assets.corpus.repositories import BUILDERS
from wan_compat.policies.models import decide_model
from wan_compat.policies.planning.job import shape_of
from wan_compat.policies.planning.shapes import ModelShape
from wan_compat.supervisor.inspection import read_model

GB = 10**9


@functools.cache
def shape(name: str) -> ModelShape:
    """The shape of an official model, from headers of the real shapes."""
    with tempfile.TemporaryDirectory() as folder:
        BUILDERS[name](Path(folder) / "model")
        found = shape_of(decide_model(read_model(str(Path(folder) / "model")), threads=8, memory_limit_bytes=1 << 50))
    assert found is not None
    return found


@pytest.fixture(scope="session")
def official():
    return shape
