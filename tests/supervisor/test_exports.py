"""The classes that embedding programs know by name are found in the room itself, and cost nothing until asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from wan_compat import supervisor


@pytest.mark.parametrize("name", supervisor._HOMES)
def test_a_known_class_is_found_in_the_room(name: str) -> None:
    found = getattr(supervisor, name)
    assert (found.__name__, found.__module__) == (name, supervisor._HOMES[name])
    assert name in dir(supervisor)


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        supervisor.nothing_of_ours  # noqa: B018


def test_importing_the_room_loads_nothing() -> None:
    code = "import sys, wan_compat.supervisor; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
