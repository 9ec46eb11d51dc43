"""Runs pieces of code as a worker runs restricted code, and says how each ended. No sandbox: what is tried is the policy.

Reads a JSON list of [name, source, plain too] on stdin; writes {name: {"guarded": ..., "plain": ...}}. An outcome is
"refused: why" (not compiled), "denied: why" (raised) or "gained: what" (`generate` returned something).
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from wan_compat.protocol.errors import ModelNotCompatible
from wan_compat.protocol.restricted_policy import restrict
from wan_compat.protocol.values import FrameSpec, GenerationParams, RestrictedSpec
from wan_compat.workers.restricted.generation import Pipe, Request
from wan_compat.workers.restricted.run import load_function

PARAMS = GenerationParams(
    prompt="a fox",
    seed=7,
    num_inference_steps=2,
    guidance_scale=5.0,
    frames=FrameSpec(height=64, width=96, num_frames=5),
)


def handles() -> tuple[Any, Any]:
    nothing: Any = None
    return Pipe(nothing, PARAMS, nothing, nothing, nothing), Request(PARAMS)


def guarded(source: str) -> str:
    found = restrict(source.encode())
    if found.breaches:
        return f"refused: {'; '.join(breach.what for breach in found.breaches)}"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pipeline.py").write_text(source)
        digest = hashlib.sha256(source.encode()).hexdigest()
        spec = RestrictedSpec(module="pipeline.py", function="generate", files={"pipeline.py": digest})
        try:
            return f"gained: {load_function(spec, folder)(*handles())!r}"
        except ModelNotCompatible as error:
            return f"denied: {error.message}"
        except Exception as error:
            return f"denied: {type(error).__name__}: {error}"


def plain(source: str) -> str:
    scope: dict[str, Any] = {"__name__": "pipeline"}
    try:
        exec(compile(source, "pipeline.py", "exec", dont_inherit=True), scope)
        return f"gained: {scope['generate'](*handles())!r}"
    except Exception as error:
        return f"denied: {type(error).__name__}: {error}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    snippets = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a snippet prints must not look like an answer
    outcomes = {name: {"guarded": guarded(source)} for name, source, _ in snippets}
    for name, source, plain_too in snippets:  # last, and not those that would change what the others meet
        if plain_too:
            outcomes[name]["plain"] = plain(source)
    json.dump(outcomes, answers)
    answers.close()
