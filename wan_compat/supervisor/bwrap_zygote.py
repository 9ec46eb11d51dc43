"""A zygote inside a bubblewrap, for one worker: where the machine refuses namespaces to this Python but not to it.

It is the light zygote: nothing is gained by importing before a fork that happens once. Its sandbox holds the view of
its worker, so it is started when that is known, and ends with it. The supervisor believes in the layers around it when
bwrap has named the namespaces that it made and the zygote has tried in vain what they must deny.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

from wan_compat.protocol.errors import SandboxEntryFailed, WanCompatError, WorkerStartFailed
from wan_compat.sandbox import bwrap
from wan_compat.sandbox.failure import bwrap_remedy, failed
from wan_compat.sandbox.spec import SCRATCH_TARGET, ConfinementSpec
from wan_compat.supervisor.zygote import ZYGOTE_ENVIRONMENT, ZYGOTE_PROGRAM, Zygote

# Nothing can be written in there, and torch makes this folder when it is imported: one that exists satisfies it.
_ENVIRONMENT = {**ZYGOTE_ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR": SCRATCH_TARGET}


class BwrapZygote(Zygote):
    """
    Args:
        spec: Of the worker that it will fork; its view is built now.

    Raises:
        SandboxEntryFailed: There is no bwrap that could be trusted, or it could not make the sandbox.
    """

    def __init__(
        self, spec: ConfinementSpec, *, program: Sequence[str] = ZYGOTE_PROGRAM, site: str | None = None
    ) -> None:
        self._spec = spec
        self.path = bwrap.find()
        super().__init__(light=True, program=program, site=site)

    def _start(self, argv: list[str], control_fd: int, log_writer: int) -> subprocess.Popen[bytes]:
        outer = ",".join(sorted(self._spec.outer))
        try:
            process, self.outer = bwrap.start(
                self.path,
                self._spec,
                [*argv, "--parent-pid", "1", "--outer", outer],  # bwrap is the first process of its namespace
                env=_ENVIRONMENT,
                pass_fds=[control_fd],
                stdout=log_writer,
                stderr=log_writer,
            )
        except SandboxEntryFailed as error:
            raise self._quoting(error) from error
        return process

    def wait_ready(self, deadline_s: float, cancelled: Callable[[], bool], wake_fd: int) -> None:
        try:
            super().wait_ready(deadline_s, cancelled, wake_fd)
        except WorkerStartFailed as error:  # it could not even start: a lack of this arrangement, not of the model
            raise failed(bwrap.NAME, f"inside {self.path}: {error.message}", bwrap_remedy()) from error
        assert self.ready is not None
        if self.ready.open_doors:
            raise failed(
                bwrap.NAME,
                f"{self.path} does not hold: {', '.join(self.ready.open_doors)} should have been denied",
                bwrap_remedy(),
            )

    def _quoting(self, error: SandboxEntryFailed) -> WanCompatError:
        self.log.collect()
        said = self.log.tail().strip()[-500:]
        return SandboxEntryFailed(
            f"{error.message}: {said}" if said else error.message, fixes=error.fixes, details=error.details
        )
