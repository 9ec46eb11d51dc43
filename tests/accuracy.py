"""How often detection is right: `python -m tests.accuracy [--mutants N] [--seed S] [--every-class] [--without WHAT] [--json]`.

Runs the reader and detection over the corpus (`tests/assets/corpus`): every entry, every look-alike, and damaged forms
of them made from a seed; with `--every-class` over every denoiser of the installed diffusers too. `--without` takes one
kind of evidence away, which shows what it is worth, and that the corpus can tell. Prints one table; exits with 1 when
more than 1% of anything is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.assets.corpus.expected import EXPECTED, Expected
from tests.assets.corpus.layouts import Builder
from tests.assets.corpus.lookalikes import LOOKALIKES
from tests.assets.corpus.mutations import MUTATIONS, ONLY, Subject
from tests.assets.corpus.repositories import BUILDERS
from wan_compat.policies.architecture import Architecture
from wan_compat.policies.detection import detect
from wan_compat.policies.facts import ModelFacts
from wan_compat.supervisor.inspection import read_facts

ALL: dict[str, Builder] = {**BUILDERS, **LOOKALIKES}
TARGET = 0.99
EVERY_CLASS = "every class of diffusers"
SUMMARY = ("entry", "look-alike", EVERY_CLASS, "all mutants")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out for one model. `kind` is "entry", "look-alike", `EVERY_CLASS` or the name of a mutation."""

    kind: str
    name: str
    seed: int
    problems: tuple[str, ...]
    seconds: float


def look_at(path: Path) -> Architecture:
    return detect(_blinded(read_facts(str(path))))


def _everything(facts: ModelFacts) -> ModelFacts:
    return facts


def _without_headers(facts: ModelFacts) -> ModelFacts:
    return dataclasses.replace(facts, weights={})


def _without_configs(facts: ModelFacts) -> ModelFacts:
    documents = {path: value for path, value in facts.documents.items() if "config" not in path}
    return dataclasses.replace(facts, documents=documents)


def _without_index(facts: ModelFacts) -> ModelFacts:
    documents = {path: value for path, value in facts.documents.items() if "model_index" not in path}
    return dataclasses.replace(facts, documents=documents)


BLINDFOLDS = {"headers": _without_headers, "configs": _without_configs, "index": _without_index}
_blinded = _everything


def judge(kind: str, name: str, path: Path, expected: Expected, seed: int = 0) -> Outcome:
    started = time.perf_counter()
    try:
        problems = tuple(expected.wrong(look_at(path)))
    except Exception as error:
        # A crash is an answer too, and the worst one: it is counted, not raised.
        problems = (f"crashed: {type(error).__name__}: {error}",)
    return Outcome(kind, name, seed, problems, time.perf_counter() - started)


def judge_entry(name: str, folder: Path) -> Outcome:
    kind = "look-alike" if name in LOOKALIKES else "entry"
    return judge(kind, name, ALL[name](folder / "model"), EXPECTED[name])


def judge_mutant(kind: str, name: str, seed: int, folder: Path) -> Outcome | None:
    """Return the outcome for one mutant, None where that mutation does not apply to that entry."""
    rng = random.Random(f"{kind}/{name}/{seed}")
    subject = Subject(name, ALL[name](folder / "model"), EXPECTED[name], rng)
    expected = MUTATIONS[kind](subject)
    return None if expected is None else judge(kind, name, subject.path, expected, seed)


def mutants(count: int, seed: int, folder: Path, kinds: Sequence[str] = tuple(MUTATIONS)) -> Iterator[Outcome]:
    """Yield the outcomes of `count` mutants, the kinds in turn and the entries by chance."""
    rng = random.Random(seed)
    made = 0
    while made < count:
        kind = kinds[made % len(kinds)]
        place = folder / "mutant"
        outcome = judge_mutant(kind, rng.choice(ONLY.get(kind, tuple(ALL))), rng.randrange(2**32), place)
        shutil.rmtree(place, ignore_errors=True)
        if outcome is not None:
            made += 1
            yield outcome


def measure(count: int, seed: int) -> list[Outcome]:
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="wan-compat-accuracy-") as scratch:
        for index, name in enumerate(ALL):
            outcomes.append(judge_entry(name, Path(scratch) / str(index)))
        outcomes.extend(mutants(count, seed, Path(scratch)))
    return outcomes


def every_class() -> Iterator[Outcome]:
    """Yield what is said of every denoiser of diffusers: that it is Wan's, or anything but that."""
    from tests.assets.corpus.sweep import sweep

    for name, form, path, is_wan in sweep():
        expected = Expected((True,) if is_wan else (False, None), (), ())
        yield judge(EVERY_CLASS, f"{name} as {form.replace('_', ' ')}", path, expected)


def table(outcomes: list[Outcome]) -> list[tuple[str, int, int, float]]:
    """Return (what, how many, how many right, slowest in seconds) per kind, with a sum for all mutants."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.kind, []).append(outcome)
        if outcome.kind in MUTATIONS:
            groups.setdefault("all mutants", []).append(outcome)
    order = [kind for kind in (*SUMMARY, *MUTATIONS) if kind in groups]
    return [
        (kind, len(group), sum(not outcome.problems for outcome in group), max(outcome.seconds for outcome in group))
        for kind, group in ((kind, groups[kind]) for kind in order)
    ]


def main() -> int:
    global _blinded
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every-class", action="store_true")
    parser.add_argument("--without", choices=BLINDFOLDS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    _blinded = BLINDFOLDS.get(arguments.without, _everything)
    outcomes = measure(arguments.mutants, arguments.seed)
    if arguments.every_class:
        outcomes.extend(every_class())
    failures = [outcome for outcome in outcomes if outcome.problems]
    rows = table(outcomes)
    if arguments.json:
        document = {
            "schema_version": 1,
            "seed": arguments.seed,
            "rows": [dict(zip(("kind", "count", "right", "slowest_s"), row, strict=True)) for row in rows],
            "failures": [dataclasses.asdict(failure) for failure in failures],
        }
        print(json.dumps(document, indent=2))
    else:
        print(f"| what (seed {arguments.seed}) | models | right | % | slowest |\n|---|---:|---:|---:|---:|")
        for kind, count, right, slowest in rows:
            print(
                f"| {kind.replace('_', ' ')} | {count} | {right} | {100 * right / count:.1f} | {slowest * 1000:.0f} ms |"
            )
        for failure in failures:
            print(f"\n{failure.kind}: {failure.name} (seed {failure.seed})")
            for problem in failure.problems:
                print(f"    {problem}")
    summary = [row for row in rows if row[0] in SUMMARY]
    return int(any(right < TARGET * count for _, count, right, _ in summary))


if __name__ == "__main__":
    sys.exit(main())
