"""Fetching the Python sources that a repository brings, for a person to read and approve. Nothing of it is executed.

    model in the cache      the sources of that very commit join its snapshot
    model not in the cache  the sources alone, at the commit that `main` is now, in <user cache>/wan-compat/code

The second is a place of its own because a snapshot with sources and no weights would pass for a model that is there.
"""

from __future__ import annotations

import dataclasses
import os

import platformdirs

from wan_compat.policies.policy import Policy
from wan_compat.policies.scan.report import ScanReport
from wan_compat.protocol.errors import ModelNotFound
from wan_compat.supervisor.downloader import Downloaded, download_code, is_hub_id
from wan_compat.supervisor.hub_process import Hub
from wan_compat.supervisor.inspection.locate import Place, locate
from wan_compat.supervisor.inspection.problems import Problems
from wan_compat.supervisor.inspection.walk import list_files
from wan_compat.supervisor.scanner import scan_model


@dataclasses.dataclass(frozen=True)
class FetchedCode:
    """Sources that were fetched, and what `scan` says about the folder they are in."""

    downloaded: Downloaded
    scan: ScanReport

    @property
    def verdict(self) -> str:
        """One sentence for a person who decides."""
        count = len(self.scan.findings)
        return f"{len(self.downloaded.files)} sources were fetched; scan: {self.scan.risk_level} risk, {count} findings"


def code_cache() -> str:
    """Return the folder in which sources without their model are kept, in the layout of a Hugging Face cache."""
    return os.path.join(platformdirs.user_cache_dir("wan-compat", appauthor=False), "code")


def has_code(place: Place) -> bool:
    """Whether any Python lies among the files of a model."""
    return any(path.lower().endswith(".py") for path in list_files(place, Problems()))


def fetch_missing_code(model: str, policy: Policy, *, hub: Hub | None = None) -> FetchedCode | None:
    """Fetch the sources of a repository, or return None where there is no hub to ask: a folder or file of the user's.

    Raises:
        ModelNotFound: `model` is nothing here and no hub id.
        RefusedByPolicy, FetchFailed, ...: As `download_model`. The policy must allow trust mode.
    """
    try:
        place = locate(model)
    except ModelNotFound:
        if not is_hub_id(model):
            raise
        downloaded = download_code(model, policy, revision="main", hub=hub, cache=code_cache())
    else:
        if place.repository is None or place.revision is None:
            return None
        # <cache>/models--org--name/snapshots/<commit>: the sources belong beside the weights that they are for.
        cache = os.path.dirname(os.path.dirname(place.inside[1]))
        downloaded = download_code(place.repository, policy, revision=place.revision, hub=hub, cache=cache)
    if not downloaded.files:
        return None
    return FetchedCode(downloaded, scan_model(downloaded.path))
