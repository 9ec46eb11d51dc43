"""Reading restricted code: the named file and the modules that it imports, each bounded, hashed, and put to the policy.

Nothing is compiled or run here. The policy says whether the worker may try, before anything is started; it decides
nothing about what the code can do there (SECURITY.md, T18).
"""

from __future__ import annotations

import hashlib

from wan_compat.policies.facts import FileFact, ModelFacts
from wan_compat.policies.models import ModelDecision, decide_model
from wan_compat.policies.restricted_models import decide_restricted_model, named_function
from wan_compat.policies.tasks import Wish
from wan_compat.protocol.errors import InvalidRequest, RemoteCodeRefused
from wan_compat.protocol.restricted_policy import MAX_SOURCE_BYTES, restrict
from wan_compat.protocol.values import RestrictedSpec
from wan_compat.supervisor.inspection.opening import opened, read_at
from wan_compat.supervisor.inspection.problems import Defect

MAX_FILES = 16
_SHOWN = 5
_HINT = "docs/restricted.md says what restricted code may consist of"


def choose_restricted_model(
    facts: ModelFacts, *, threads: int, memory_limit_bytes: int, wish: Wish | None = None
) -> ModelDecision:
    """Return what is loaded for a job with `--restricted`; as without it where the repository names no code.

    Raises:
        RemoteCodeRefused: The code leaves the subset, or something else of the repository asks for code.
        InvalidRequest: A task or media were asked for, which no such code is given.
        Others: As `decide_model`.
    """
    named = named_function(facts)
    if named is None:
        return decide_model(facts, threads=threads, memory_limit_bytes=memory_limit_bytes, wish=wish)
    if wish is not None and (wish.task not in (None, "t2v") or wish.roles or wish.options):
        raise InvalidRequest(
            "restricted code is given a prompt and sizes, no task and no pictures",
            hint="leave them out, or leave --restricted out",
        )
    code = read_restricted_code(facts, *named)
    return decide_restricted_model(facts, code, threads=threads, memory_limit_bytes=memory_limit_bytes)


def read_restricted_code(facts: ModelFacts, module: str, function: str) -> RestrictedSpec:
    """Read the code that `module` consists of.

    Raises:
        RemoteCodeRefused: It leaves the subset; names file, line and construct.
        ModelInvalid: A file changed, or may not be read.
    """
    wrong: list[str] = []
    hashes: dict[str, str] = {}
    pending = {module: f"model_index.json of {facts.root}"}
    while pending and len(hashes) < MAX_FILES:
        path = next(iter(pending))
        asked_by = pending.pop(path)
        fact = facts.files.get(path)
        if fact is None:
            wrong.append(f"{asked_by} names {path}, which the repository does not have")
            continue
        raw = _read(facts, fact)
        hashes[path] = hashlib.sha256(raw).hexdigest()
        found = restrict(raw)
        wrong += [f"{path}, line {breach.line}: {breach.what}" for breach in found.breaches]
        for sibling, line in found.siblings.items():
            if f"{sibling}.py" not in hashes:
                pending.setdefault(f"{sibling}.py", f"{path}, line {line},")
    if pending:
        wrong.append(f"more than {MAX_FILES} files")
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise RemoteCodeRefused(
            f"the code of {facts.root} is not in the restricted subset: {'; '.join(wrong[:_SHOWN])}{more}",
            hint=_HINT,
            details={"finding": "remote_code_pipeline", "breaches": wrong[:100]},
        )
    return RestrictedSpec(module=module, function=function, files=hashes)


def _read(facts: ModelFacts, fact: FileFact) -> bytes:
    try:
        with opened(fact) as descriptor:
            return read_at(descriptor, MAX_SOURCE_BYTES + 1, 0)
    except Defect as defect:
        raise defect.finding.to_error(facts.root) from None
