"""`python -m tests.faults [NAME ...] [--json]`: inject faults into real jobs and print the recovery rate by category.

Exits with 1 when a fault that a job should survive ended it, or an error does not say what is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

from tests.faults.cases import CASES, FIRST
from tests.faults.run import run, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="only cases with one of these words in their name")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = [case for case in CASES if not options.names or any(word in case.name for word in options.names)]
    outcomes = []
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"XDG_STATE_HOME": f"{folder}/state"}):
        for outcome in run(chosen, Path(folder)):
            outcomes.append(outcome)
            how = "recovered" if outcome.recovered else "fell back" if outcome.fell_back else "explained"
            how = how if outcome.ok else "FAILED"
            steps = "; ".join(outcome.steps) or "-"
            print(f"{how:<10} {outcome.seconds:5.1f} s  {outcome.case.name}: {steps}", file=sys.stderr)
            if outcome.problem:
                print(f"           {outcome.problem}", file=sys.stderr)
    mendable = [outcome for outcome in outcomes if outcome.case.recovers]
    rate = sum(outcome.recovered for outcome in mendable) / max(1, len(mendable))
    if options.json:
        document = {
            "cases": [
                {"name": item.case.name, "category": item.case.category, "ok": item.ok, "recovered": item.recovered,
                 "fell_back": item.fell_back,
                 "steps": item.steps, "seconds": round(item.seconds, 2)}
                for item in outcomes
            ],
            "recovery_rate_of_mendable": rate,
        }  # fmt: skip
        print(json.dumps(document))
    else:
        print("\n".join(table(outcomes)))
        print(f"\nOf {len(mendable)} faults that another way can mend, {rate:.0%} were mended.")
        first = [outcome for outcome in outcomes if outcome.case.name in FIRST]
        if first:
            mended = sum(outcome.recovered for outcome in first)
            print(f"Of the {len(first)} that were looked for first, {mended} recovered ({mended / len(first):.0%}).")
    return 0 if all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
