"""Coverage-guided fuzzing of the supervisor's parsers.

    python -m tests.fuzz                        every target, 20 s in total
    python -m tests.fuzz codec --seconds 3600   one target, for as long as you like
    python -m tests.fuzz codec --replay FILE    one input again

Inputs that are findings, and the corpus that grew, are kept outside the repository (--folder). Atheris guides where it
is installed (x86-64 Linux); elsewhere seeds are mutated blindly, which finds less.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

NAMES = (
    *("codec", "states", "ring", "zmtp", "json", "safetensors", "gguf", "launch", "pickle", "contents", "hub"),
    *("batch", "control"),
)
RSS_LIMIT_MB = 1024
INPUT_TIMEOUT_S = 10


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the supervisor's parsers.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(NAMES)}; all by default")
    parser.add_argument("--seconds", type=float, default=20.0, help="in total, divided among the targets")
    parser.add_argument("--folder", default=os.path.join(tempfile.gettempdir(), f"wan-compat-fuzz-{os.geteuid()}"))
    parser.add_argument("--replay", help="run one input of one target and show what it raises")
    options = parser.parse_args()
    names = options.targets or list(NAMES)
    if unknown := set(names) - set(NAMES):
        parser.error(f"no target {sorted(unknown)[0]!r}")
    if options.replay:
        from tests.fuzz.targets import TARGETS, check

        with open(options.replay, "rb") as file:
            check(TARGETS[names[0]], file.read())
        return 0
    seconds = options.seconds / len(names)
    guided = instrument()
    failed = []
    for name in names:
        # A process for each: libFuzzer ends its own, in its own way. Forked, because instrumenting takes a second.
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                os._exit(fuzz(name, seconds, options.folder, guided))
            except SystemExit as end:
                os._exit(end.code if isinstance(end.code, int) else 1)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f"{name}: {'clean' if status == 0 else f'FINDING (status {status}), see above'}", flush=True)
        if status:
            failed.append(name)
    if failed:
        print(f"findings in {', '.join(failed)}; inputs are in {options.folder}")
    return 1 if failed else 0


def instrument() -> bool:
    """Import the parsers so that atheris sees which branches an input takes; return whether it can."""
    try:
        import atheris
    except ImportError:
        print("atheris is not installed; mutating blindly", flush=True)
        return False
    with atheris.instrument_imports(
        include=["wan_compat.protocol", "wan_compat.policies.scan", "wan_compat.supervisor", "json"]
    ):
        from tests.fuzz import targets  # noqa: F401
    return True


def fuzz(name: str, seconds: float, folder: str, guided: bool) -> int:
    corpus, findings = os.path.join(folder, name, "corpus"), os.path.join(folder, name, "findings")
    for path in (corpus, findings):
        os.makedirs(path, mode=0o700, exist_ok=True)
    if not guided:
        return mutate(name, seconds, findings)
    import atheris

    from tests.fuzz import targets

    target = targets.TARGETS[name]
    for index, seed in enumerate(target.seeds()):
        with open(os.path.join(corpus, f"seed-{index}"), "wb") as file:
            file.write(seed)
    arguments = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={target.max_len}",
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        f"-timeout={INPUT_TIMEOUT_S}",
        f"-artifact_prefix={findings}/",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([name, *arguments, corpus], lambda data: targets.check(target, data))
    atheris.Fuzz()
    return 0


def mutate(name: str, seconds: float, findings: str) -> int:
    from tests.fuzz.targets import TARGETS, check

    target = TARGETS[name]
    seeds = list(target.seeds())
    chance = random.Random()
    runs, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 6)):
            chance.choice(_MUTATIONS)(data, chance)
        runs += 1
        try:
            check(target, bytes(data[: target.max_len]))
        except BaseException:
            path = os.path.join(findings, f"crash-{time.time_ns()}")
            with open(path, "wb") as file:
                file.write(data)
            print(f"{name}: finding in {path}", flush=True)
            raise
    print(f"{name}: {runs} runs", flush=True)
    return 0


def _flip(data: bytearray, chance: random.Random) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _replace(data: bytearray, chance: random.Random) -> None:
    start = chance.randint(0, len(data))
    data[start : start + chance.randint(0, 8)] = chance.randbytes(chance.randint(0, 8))


def _repeat(data: bytearray, chance: random.Random) -> None:
    start = chance.randint(0, len(data))
    data[start:start] = data[start : start + chance.randint(1, 16)] * chance.randint(1, 32)


_MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (_flip, _replace, _repeat)


if __name__ == "__main__":
    sys.exit(main())
