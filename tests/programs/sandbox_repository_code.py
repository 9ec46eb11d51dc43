"""A zygote whose workers run a Python file that lies in their model's folder, as trusted repository code will be.

    sandbox_repository_code.py OPEN_FIRST --control-fd N --parent-pid P

Everything but that is real: the supervisor's Worker, the zygote, the entry, the greeting and the seal. Then
/model/pipeline.py is executed and told by /model/order.json which attack to make; its answer goes to the log.
OPEN_FIRST is opened by the zygote under number 222, a descriptor that a worker could inherit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # python -I does not look beside the program

import wan_compat.workers.zygote as zygote
from wan_compat.protocol import messages as m
from wan_compat.protocol.channel import Channel
from wan_compat.protocol.codec import from_worker_codec, to_worker_codec
from wan_compat.sandbox import seccomp, selftest
from wan_compat.sandbox.spec import MODEL_TARGET

ANSWER = "the attack says: "
known_maps = ""

# What the attack would import once it is inside, where the standard library can still be read: nothing to hide.
for name in ("encodings.idna", "fcntl", "mmap", "resource", "struct", "stat"):
    __import__(name)


def be_worker(order: Any, confinement: Any, ring: int, doorbell: int, light: bool, report: Any) -> None:
    probes = selftest.run_probes((ring, doorbell))
    channel = Channel(order.endpoint, bind=False, outgoing=from_worker_codec(), incoming=to_worker_codec())
    hello = m.Hello(
        protocol_version=m.PROTOCOL_VERSION,
        layers=report.layers,
        probes=tuple(m.Probe(name=p.name, denied=p.denied, detail=p.detail[:200]) for p in probes),
        versions={},
        entry_s=0.0,
    )
    channel.send(hello, 1)
    channel.receive(30)
    seccomp.seal()
    sealed = selftest.run_sealed_probes()
    channel.send(m.Ready(probes=tuple(m.Probe(**_plain(probe)) for probe in sealed)), 2)
    say(run_repository_code())
    threading.Event().wait()  # killed


def _plain(probe: selftest.ProbeResult) -> dict[str, Any]:
    fields = dataclasses.asdict(probe)
    return {"name": fields["name"], "denied": fields["denied"], "detail": fields["detail"][:200]}


def run_repository_code() -> dict[str, Any]:
    """Do to /model/pipeline.py what an import of it would do, and call what it defines."""
    with open(f"{MODEL_TARGET}/order.json") as file:
        order = json.load(file)
    with open(f"{MODEL_TARGET}/pipeline.py") as file:
        source = file.read()
    module: dict[str, Any] = {"__name__": "pipeline", "__file__": f"{MODEL_TARGET}/pipeline.py"}
    exec(compile(source, "pipeline.py", "exec"), module)
    module["known_maps"] = known_maps
    try:
        arguments = {name: os.getppid() if value == "parent" else value for name, value in order["arguments"].items()}
        return {"gained": module["attacks"][order["attack"]](**arguments), "error": ""}
    except (OSError, MemoryError) as error:
        return {"gained": None, "error": f"{type(error).__name__}: {error}"}


def say(answer: dict[str, Any]) -> None:
    os.write(1, (ANSWER + json.dumps(answer) + "\n").encode())


class Zygote(zygote.Zygote):
    def _launch(self, *arguments: Any) -> Any:
        # An attacker may know the layout: it is the same in all workers of one zygote.
        global known_maps
        with contextlib.suppress(FileNotFoundError), open("/proc/self/maps") as file:  # none inside a bubblewrap
            known_maps = file.read()
        return super()._launch(*arguments)


def main() -> None:
    os.dup2(os.open(sys.argv.pop(1), os.O_RDWR), 222)
    zygote._be_worker = be_worker
    zygote.Zygote = Zygote  # type: ignore[misc]
    zygote.libraries.import_libraries = lambda: 0.0
    zygote.main()


if __name__ == "__main__":
    main()
