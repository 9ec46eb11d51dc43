"""The worker's classes that are promised (tests/contract.py) are found in their room."""

from __future__ import annotations

import pytest

from tests import contract
from tests.test_contract import check_class
from wan_compat import workers


@pytest.mark.parametrize("name", contract.CLASSES["workers"])
def test_a_promised_class_is_found_in_its_room_with_all_that_it_has(name):
    cls = getattr(workers, name)
    assert cls.__name__ == name and name in dir(workers)
    check_class(cls, contract.CLASSES["workers"][name])


def test_a_wrapper_keeps_its_pipeline_and_what_was_done_to_it():
    pipeline, optimizations = object(), {"precision": "float32"}
    wrapper = workers.WanPipelineWrapper(pipeline, optimizations)
    assert wrapper.pipeline is pipeline and wrapper.optimizations == optimizations


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        workers.nothing_of_ours  # noqa: B018
