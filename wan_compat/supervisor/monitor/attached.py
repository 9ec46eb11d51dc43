"""The supervisors of this user as a source: found by their sockets, asked through attach.py."""

from __future__ import annotations

from collections.abc import Sequence

from wan_compat.protocol.errors import NotServing
from wan_compat.supervisor.attach import Attached, Endpoint, find_supervisors


class AttachedSupervisors:
    """Implements `source.Source`. Its methods run in several threads: the dictionary is replaced, never changed."""

    def __init__(self) -> None:
        self._endpoints: dict[str, Endpoint] = {}

    def find(self) -> Sequence[str]:
        self._endpoints = {endpoint.id: endpoint for endpoint in find_supervisors()}
        return tuple(self._endpoints)

    def attach(self, id: str) -> Attached:
        endpoint = self._endpoints.get(id)
        if endpoint is None:
            raise NotServing(f"supervisor {id} has ended")
        return endpoint.attach()
