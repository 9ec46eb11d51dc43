"""Operations: the log and the metrics of a supervisor, for whoever runs one for long.

    with Supervisor() as supervisor:
        observe(supervisor, log_file="/var/log/studio/wan-compat.jsonl", log_prompts=True, metrics="127.0.0.1:9464")
        ...

`Supervisor(log_file=..., metrics=...)` does the same. The command line has `--log-file` and `--metrics` for it, and the
settings `log_file` and `metrics`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wan_compat.supervisor.client import Supervisor
    from wan_compat.supervisor.observers import Observer


def observe(
    supervisor: Supervisor,
    *,
    log_file: str | os.PathLike[str] | None = None,
    log_prompts: bool = False,
    metrics: str | os.PathLike[str] | None = None,
) -> None:
    """Have a supervisor's jobs logged and counted until it is closed. Call it before the first job.

    All or nothing: where one cannot be had, the other is not kept either.

    Args:
        log_file: Where a line for each thing that happens is appended (job_log.py).
        log_prompts: Whether prompts are written there too; otherwise only their lengths.
        metrics: A file for Prometheus, or an address on the loopback interface (metrics.py).

    Raises:
        OutputNotWritable, DiskExceeded: A file cannot be used.
        InvalidRequest: An address that other machines could reach.
        EnvironmentLacks: prometheus-client is not installed, or the port is taken.
    """
    wanted: list[Observer] = []
    try:
        if log_file is not None:
            from wan_compat.supervisor.job_log import JobLog

            wanted.append(JobLog(supervisor, log_file, prompts=log_prompts))
        if metrics is not None:
            from wan_compat.supervisor.metrics import Metrics

            wanted.append(Metrics(supervisor, metrics))
    except BaseException:
        for observer in wanted:
            observer.close()
        raise
    for observer in wanted:
        supervisor.observers.add(observer)
