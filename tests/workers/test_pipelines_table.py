"""The table of pipelines against the installed release of diffusers, in a process of its own: it imports torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from wan_compat.policies.pipelines import PIPELINES


@pytest.mark.long
def test_table_agrees_with_the_signatures_of_diffusers():
    """Components, settings and what can be left out, against the installed release."""
    code = (
        "import json, inspect, diffusers, sys\n"
        "names = json.loads(sys.argv[1])\n"
        "out = {}\n"
        "for name in names:\n"
        "    cls = getattr(diffusers, name)\n"
        "    init = inspect.signature(cls.__init__).parameters\n"
        "    out[name] = [list(init), list(cls._optional_components)]\n"
        "print(json.dumps(out))"
    )
    library = [name for name, pipeline in PIPELINES.items() if not name.endswith("ModularPipeline")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps(library)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name, (parameters, optional) in json.loads(done.stdout).items():
        pipeline = PIPELINES[name]
        assert set(pipeline.slots) | set(pipeline.settings) == set(parameters) - {"self"}, name
        assert {slot for slot, found in pipeline.slots.items() if found.optional} == set(optional), name
