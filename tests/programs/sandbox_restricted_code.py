"""As sandbox_repository_code.py, with the attack in the place of restricted code: run by what runs restricted code.

The policy lets everything through and the guards are gone, as if both had been broken: the attack has all of Python.
What is left is the sandbox, and it must be the same.
"""

import ast
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # python -I does not look beside the program

from tests.programs import sandbox_repository_code as program
from wan_compat.protocol.restricted_policy import Restricted
from wan_compat.protocol.values import RestrictedSpec
from wan_compat.sandbox.spec import MODEL_TARGET
from wan_compat.workers.restricted import run

run.restrict = lambda raw: Restricted(ast.parse(raw), (), {})
run.namespace = lambda title, import_module: {"__name__": title}


def run_restricted_code() -> dict[str, Any]:
    """Load /model/pipeline.py as restricted code, and call what it defines."""
    with open(f"{MODEL_TARGET}/order.json") as file:
        order = json.load(file)
    with open(f"{MODEL_TARGET}/pipeline.py", "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    spec = RestrictedSpec(module="pipeline.py", function="attacks", files={"pipeline.py": digest})
    attack = run.Repository(spec, MODEL_TARGET).module("pipeline").attacks[order["attack"]]
    attack.__globals__["known_maps"] = program.known_maps
    try:
        return {"gained": attack(**order["arguments"]), "error": ""}
    except (OSError, MemoryError) as error:
        return {"gained": None, "error": f"{type(error).__name__}: {error}"}


program.run_repository_code = run_restricted_code

if __name__ == "__main__":
    program.main()
