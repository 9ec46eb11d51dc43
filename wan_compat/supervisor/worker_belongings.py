"""What belongs to one worker: made before there is a process, handed over to it, and gone after its end.

The socket folder with the supervisor's end of the control channel, the frame ring, the log's pipe, the cgroup; and from
all of them the spec by which the worker confines itself.
"""

from __future__ import annotations

import contextlib
import os

from wan_compat.policies.confinement import plan_confinement, plan_limits
from wan_compat.protocol.channel import Channel
from wan_compat.protocol.codec import from_worker_codec, to_worker_codec
from wan_compat.sandbox import cgroup as cgroups
from wan_compat.sandbox import runtime_view
from wan_compat.sandbox.spec import CONTROL_TARGET, Identity, Layer
from wan_compat.supervisor import gpu_grant
from wan_compat.supervisor.frame_ring import FrameRing
from wan_compat.supervisor.host import fresh_identity
from wan_compat.supervisor.runtime import RuntimeFolder
from wan_compat.supervisor.worker_log import BoundedLog
from wan_compat.supervisor.worker_order import WorkerOrder

SOCKET_NAME = "c"


class Belongings:
    """Made in the constructor or not at all; `close` removes everything.

    Attributes:
        channel, ring, log: The supervisor's ends.
        cgroup: None without that layer.
        spec: How the worker confines itself.
        endpoint: Where it finds the channel, as it sees it.
        undo: What else goes with them.
    """

    def __init__(
        self,
        name: str,
        order: WorkerOrder,
        layers: frozenset[Layer],
        runtime: RuntimeFolder,
        outer: frozenset[Layer],
    ) -> None:
        self.cgroup: cgroups.Cgroup | None = None
        with contextlib.ExitStack() as undo:
            identity = fresh_identity()
            folder = runtime.make_worker_folder(name, identity)
            undo.callback(runtime.remove_worker_folder, name)
            socket_path = os.path.join(folder, SOCKET_NAME)
            self.channel = undo.enter_context(
                Channel(f"ipc://{socket_path}", bind=True, outgoing=to_worker_codec(), incoming=from_worker_codec())
            )
            if identity is not None:
                os.chown(socket_path, identity.uid, identity.gid)
            self.endpoint = f"ipc://{CONTROL_TARGET if Layer.VIEW in layers else folder}/{SOCKET_NAME}"
            self.ring = FrameRing()
            undo.callback(self.ring.close)
            reader, self._log_writer = os.pipe2(os.O_CLOEXEC)
            undo.callback(self._close_log_writer)
            os.set_blocking(reader, False)
            self.log = BoundedLog(reader)
            undo.callback(self.log.close)
            limits = plan_limits(order.policy, memory_limit_bytes=order.memory_limit_bytes, threads=order.threads)
            if Layer.CGROUP in layers:
                self.cgroup = cgroups.create(f"{os.path.basename(runtime.path)}-{name}", limits)
                undo.callback(self.cgroup.remove)
            gpu = gpu_grant.grant(order.pipeline)
            self.spec = plan_confinement(
                layers=layers,
                runtime_binds=(*runtime_view.runtime_binds(order.site), *gpu.binds),
                # Through bwrap it keeps its number, which a setuid one cannot translate.
                runtime_files=(
                    *runtime_view.runtime_files(
                        Identity(os.geteuid(), os.getegid()) if outer and identity is None else identity
                    ),
                    *gpu.files,
                ),
                admitted=order.admitted,
                control_dir=folder,
                scratch_dir=None if Layer.VIEW in layers else runtime.make_scratch_folder(name, identity),
                scratch_bytes=order.policy.scratch_bytes,
                limits=limits,
                identity=identity,
                cgroup_dirs=self.cgroup.dirs if self.cgroup is not None else (),
                outer=outer,
                gpu=gpu.access,
            )
            self.undo = undo.pop_all()

    @property
    def worker_descriptors(self) -> tuple[int, ...]:
        """What the worker gets: both of the ring's, and the end of the log's pipe that is written."""
        return (*self.ring.worker_descriptors, self._log_writer)

    def handed_over(self) -> None:
        """The worker has its ends now, and nobody else may."""
        self.ring.close_worker_ends()
        self._close_log_writer()

    def close(self) -> None:
        self.undo.close()

    def _close_log_writer(self) -> None:
        if self._log_writer >= 0:
            os.close(self._log_writer)
            self._log_writer = -1
