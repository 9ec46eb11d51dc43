"""`@in_torch_process`: a test whose body runs where torch is imported, so that pytest's own process stays small."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def in_torch_process(test: Callable[[], None]) -> Callable[..., None]:
    """Run the body of `test` in a fork of the session's torch process."""

    def wrapper(torch_process: Any) -> None:
        torch_process.run(test.__module__, test.__name__)

    functools.update_wrapper(wrapper, test)
    del wrapper.__wrapped__  # pytest would look through it, at a signature without the fixture
    wrapper.inside = test  # type: ignore[attr-defined]
    return wrapper
