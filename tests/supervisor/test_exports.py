"""The names that embedding programs know are found in the rooms themselves, and cost nothing until asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

from wan_compat import policies, protocol, supervisor

ROOMS = (policies, protocol, supervisor)


@pytest.mark.parametrize(("room", "name"), [(room, name) for room in ROOMS for name in room._HOMES])
def test_a_known_name_is_found_in_the_room(room: ModuleType, name: str) -> None:
    home = importlib.import_module(room._HOMES[name])
    assert getattr(room, name) is vars(home)[name]
    assert getattr(vars(home)[name], "__module__", home.__name__) == home.__name__, "named by where it is used"
    assert name in dir(room)


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_not_there_is_an_attribute_error(room: ModuleType) -> None:
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        room.nothing_of_ours  # noqa: B018


def test_importing_the_rooms_loads_nothing() -> None:
    code = "import sys, wan_compat.supervisor, wan_compat.policies, wan_compat.protocol; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
