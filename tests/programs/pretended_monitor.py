"""The monitor's screen over supervisors that do not exist: `python -m tests.programs.pretended_monitor [WAYS...]`.

Ways: `hang` (one never answers), `vanish` (one is there for a second), `hostile` (text that tries to take the terminal),
`crash` (the program fails in the middle of drawing), `read-only`, `ascii`. Orders change the pretended supervisors.
"""

from __future__ import annotations

import os
import sys
import time

from tests.supervisor.monitor.statuses import a_status, hostile_status
from wan_compat.protocol.errors import EnvironmentLacks
from wan_compat.protocol.status import SupervisorStatus
from wan_compat.supervisor.monitor import app
from wan_compat.supervisor.monitor.characters import ASCII, characters_for


class Pretended:
    """A source whose supervisors live in this process."""

    def __init__(self, ways: set[str]) -> None:
        self._ways = ways
        self._start = time.monotonic()
        self.statuses: dict[str, SupervisorStatus] = {"aaaa": hostile_status() if "hostile" in ways else a_status()}

    def find(self) -> list[str]:
        if "crash" in self._ways and time.monotonic() - self._start > 1:
            # Not a well-behaved error of a thread: as if the loop itself had failed.
            app.render = None  # type: ignore[assignment]
        ids = list(self.statuses)
        if "hang" in self._ways:
            ids.append("hangs")
        if "vanish" in self._ways and time.monotonic() - self._start < 1.5:
            ids.append("brief")
        return ids

    def attach(self, id: str) -> PretendedConnection:
        if id == "brief" and time.monotonic() - self._start > 1.5:
            raise EnvironmentLacks("it has ended")
        return PretendedConnection(self, id)


class PretendedConnection:
    def __init__(self, source: Pretended, id: str) -> None:
        self._source, self._id = source, id

    def status(self) -> SupervisorStatus:
        if self._id == "hangs":
            time.sleep(3600)
        if self._id == "brief":
            return a_status(id="brief", program="a brief one")
        return self._source.statuses[self._id].model_copy(update={"now_unix_s": time.time()})

    def cancel(self, job: str) -> bool:
        status = self._source.statuses[self._id]
        queued = tuple(each for each in status.queued if each.id != job)
        running = tuple(each for each in status.running if each.id != job)
        found = len(queued) + len(running) < len(status.queued) + len(status.running)
        self._change(queued=queued, running=running, queued_count=len(queued))
        return found

    def kill_worker(self, worker: str) -> bool:
        workers = self._source.statuses[self._id].workers
        self._change(workers=tuple(each for each in workers if each.id != worker))
        return any(each.id == worker for each in workers)

    def pause(self) -> None:
        self._change(paused=True)

    def resume(self) -> None:
        self._change(paused=False)

    def close(self) -> None:
        pass

    def _change(self, **fields: object) -> None:
        self._source.statuses[self._id] = self._source.statuses[self._id].model_copy(update=fields)


def main() -> None:
    ways = set(sys.argv[1:])
    chars = ASCII if "ascii" in ways else characters_for(sys.stdout.encoding, os.environ)
    app.run(Pretended(ways), chars, read_only="read-only" in ways, color=not os.environ.get("NO_COLOR"))


if __name__ == "__main__":
    main()
