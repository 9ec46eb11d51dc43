"""The decision of `--restricted`: which function of the repository calls the pipeline, and what is loaded beside it.

    model_index.json   "_class_name": ["pipeline", "generate"]      the function `generate` of pipeline.py

That is how diffusers names a pipeline of the repository's own. Everything else is as in safe mode: the components are
the library's, and whatever else names code (`auto_map`, component libraries, kernels) stays refused.
"""

from __future__ import annotations

import dataclasses
import re

from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.models import TEXT_TO_VIDEO, ModelDecision, decide_model
from wan_compat.protocol.errors import RemoteCodeRefused
from wan_compat.protocol.values import RestrictedSpec

INDEX = "model_index.json"
_MODULE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_FUNCTION = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}")


def named_function(facts: ModelFacts) -> tuple[str, str] | None:
    """Return file and function that the index names; None where it names a pipeline of the library.

    Raises:
        RemoteCodeRefused: It names something else than a module at the top of the repository and a function in it.
    """
    named = facts.index.get("_class_name")
    if not isinstance(named, list):
        return None
    if len(named) == 2 and all(isinstance(item, str) for item in named):
        module, function = named
        if _MODULE.fullmatch(module) and _FUNCTION.fullmatch(function):
            return f"{module}.py", function
    raise RemoteCodeRefused(
        f"{INDEX} of {facts.root} names its pipeline as {named!r}; "
        "restricted code is a module at the top of the repository and a function in it",
        hint="docs/restricted.md says how a repository names its function",
    )


def decide_restricted_model(
    facts: ModelFacts, code: RestrictedSpec, *, threads: int, memory_limit_bytes: int
) -> ModelDecision:
    """Decide as in safe mode about everything but the code, and admit the files of the code.

    Args:
        code: Its files were read and keep to the subset.

    Raises:
        As `decide_model`.
    """
    index = {**facts.index, "_class_name": TEXT_TO_VIDEO}
    beside = dataclasses.replace(facts, documents={**facts.documents, INDEX: index})
    decision = decide_model(beside, threads=threads, memory_limit_bytes=memory_limit_bytes)
    return dataclasses.replace(
        decision,
        # Frames are those that the function returns, not those that the VAE decodes.
        pipeline=decision.pipeline.model_copy(update={"restricted": code, "streaming": "never"}),
        admitted=tuple(
            sorted((*decision.admitted, *(facts.files[path] for path in code.files)), key=lambda fact: fact.path)
        ),
        reasons=(*decision.reasons, f"restricted code: {', '.join(sorted(code.files))}"),
    )
