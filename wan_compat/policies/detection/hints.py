"""Hints: what chooses among candidates that files cannot tell apart, and never adds one that the files exclude.

Strongest first: the exact repository, the pipeline class of the index, words in the names of repository, folder and
file, the scheduler's flow_shift.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from wan_compat.policies.detection.classes import NOT_IN_DIFFUSERS, WAN_PIPELINES
from wan_compat.policies.facts import ModelFacts
from wan_compat.policies.variants import VARIANTS

# A dot between digits belongs to a version, any other to a file's suffix.
_SEPARATORS = re.compile(r"(?:[^a-z0-9.]|(?<!\d)\.|\.(?!\d))+")
_MAX_NAME_CHARS = 400

# Words in a name -> part of the slugs that they speak for, and how much. Words have borders on both sides.
_WORDS: tuple[tuple[str, str, int], ...] = (
    ("480p", "480p", 3),
    ("540p", "540p", 3),
    ("720p", "720p", 3),
    ("chronoedit", "chronoedit", 6),
    ("chrono-edit", "chronoedit", 6),
    ("flashpack", "flashpack", 4),
    ("krea", "krea", 6),
    ("bernini", "bernini", 6),
    ("fastwan", "fastwan", 6),
    ("dmd", "fastwan", 2),
    ("vsa", "vsa", 6),
    ("turbowan", "turbowan", 6),
    ("turbodiffusion", "turbowan", 6),
    ("causalwan", "causalwan", 6),
    ("skyreels", "skyreels", 6),
    ("skyreels-v3", "skyreels-v3", 2),
    ("diffusion-forcing", "-df-", 4),
    ("df", "-df-", 3),
    # "fun" alone is an ordinary word.
    ("wan2.1-fun", "-fun-", 5),
    ("wan2.2-fun", "-fun-", 5),
    ("fun-inp", "-fun-", 5),
    ("fun-14b", "-fun-", 5),
    ("fun-1.3b", "-fun-", 5),
    ("rose", "rose", 6),
    ("lucy", "lucy", 3),
    ("distill", "distilled", 3),
    ("distilled", "distilled", 2),
    ("a14b", "a14b", 4),
    ("wan2.2", "wan2.2", 4),
    ("wan22", "wan2.2", 4),
    ("high-noise", "wan2.2", 5),
    ("low-noise", "wan2.2", 5),
    ("highnoise", "wan2.2", 5),
    ("lownoise", "wan2.2", 5),
    ("wan2.1", "wan2.1", 4),
    ("wan21", "wan2.1", 4),
    ("t2v", "t2v", 3),
    ("i2v", "i2v", 3),
    ("ti2v", "ti2v", 3),
    ("flf2v", "flf2v", 4),
    ("vace", "vace", 4),
    ("animate", "animate", 4),
    ("lucy-edit-1.1", "lucy-edit-1.1", 6),
    ("helios-mid", "helios-mid", 4),
    ("pyramid", "helios-mid", 2),
)
_AT_START = frozenset({"fastwan", "skyreels", "distill", "turbowan", "causalwan"})  # a version may follow at once


@dataclasses.dataclass(frozen=True)
class Hints:
    """What speaks for one candidate or another. `name` holds all names that count, as words between dashes."""

    repository: str | None
    name: str
    pipeline: str | None
    flow_shift: float | None
    is_distilled: bool


def hints_of(facts: ModelFacts, index: Mapping[str, Any], pipeline: str | None, references: Iterable[str]) -> Hints:
    """Collect the hints. The folder's own name counts, its parents' do not; a snapshot folder's name is a commit."""
    names = [facts.repository or "", *references]
    if facts.is_file:
        names += [facts.root.rpartition("/")[2], *list(facts.files)[:1]]
    else:
        if facts.revision is None:
            names.append(facts.root.rstrip("/").rpartition("/")[2])
        names += [
            path for path in list(facts.weights)[:50] if not path.rpartition("/")[2].startswith(("diffusion_", "model"))
        ]
    scheduler = facts.documents.get("scheduler/scheduler_config.json", {})
    shift = scheduler.get("flow_shift", scheduler.get("shift"))
    known = isinstance(shift, int | float) and not isinstance(shift, bool)
    return Hints(
        repository=facts.repository or next(iter(references), None),
        name=" ".join(normalised(name) for name in names if name),
        pipeline=pipeline,
        flow_shift=shift if known else None,
        is_distilled=index.get("is_distilled") is True,
    )


def normalised(name: str) -> str:
    """Return a name as words between dashes: `Wan2.1_I2V-14B 720P` -> `-wan2.1-i2v-14b-720p-`."""
    words = "-" + _SEPARATORS.sub("-", name[-_MAX_NAME_CHARS:].lower()).strip("-") + "-"
    return words.replace("-wan2-1-", "-wan2.1-").replace("-wan2-2-", "-wan2.2-")


def speaks_of(slug: str, hints: Hints) -> bool:
    """Whether a name, or a foreign pipeline's class, speaks of a fine-tune: then it joins the candidates."""
    if _is_repository(slug, hints) or f"-{slug}-" in hints.name:
        return True
    # diffusers' own classes run the official models too, and say nothing about a fine-tune.
    if hints.pipeline in NOT_IN_DIFFUSERS or slug.startswith("skyreels"):
        made_for = WAN_PIPELINES.get(hints.pipeline or "", ())
        if any(slug.startswith(prefix) for prefix in made_for):
            return True
    family = _FINE_TUNES.get(slug)
    return family is not None and all(_says(hints.name, word) for word in family)


# The words of a name that must all be there for a fine-tune that shares its files with another model.
_FINE_TUNES: Mapping[str, tuple[str, ...]] = {
    "fastwan2.1-t2v-1.3b": ("fastwan",),
    "fastwan2.1-t2v-14b": ("fastwan",),
    "wan2.1-vsa-t2v-14b-720p": ("vsa",),
    "turbowan2.2-i2v-a14b": ("turbowan",),
    "causalwan2.2-i2v-a14b-preview": ("causalwan",),
    "skyreels-v2-df-1.3b-540p": ("skyreels",),
    "skyreels-v2-t2v-14b-540p": ("skyreels",),
    "skyreels-v2-t2v-14b-720p": ("skyreels",),
    "skyreels-v2-df-14b-540p": ("skyreels",),
    "skyreels-v2-df-14b-720p": ("skyreels",),
    "skyreels-v2-i2v-14b-540p": ("skyreels",),
    "skyreels-v2-i2v-14b-720p": ("skyreels",),
    "skyreels-v3-v2v-14b": ("skyreels-v3",),
    "chronoedit-14b-flashpack": ("flashpack",),
    "bernini-r": ("bernini",),
    "lucy-edit-1.1-dev": ("lucy-edit-1.1",),
    "rose": ("rose",),
}


def ranked(slugs: Iterable[str], hints: Hints) -> tuple[str, ...]:
    """Return the slugs, best supported first; without hints in the order they came."""
    return tuple(sorted(dict.fromkeys(slugs), key=lambda slug: -score(slug, hints)))


def score(slug: str, hints: Hints) -> int:
    """Return how much speaks for a slug."""
    points = 100 if _is_repository(slug, hints) else 0
    if f"-{slug}-" in hints.name:
        # A longer slug that holds a shorter one (`-distilled`) is the more exact match.
        points += 40 + len(slug)
    if any(slug.startswith(prefix) for prefix in WAN_PIPELINES.get(hints.pipeline or "", ())):
        points += 20
    if hints.is_distilled and "distilled" in slug:
        points += 15
    for word, part, weight in _WORDS:
        if part in f"-{slug}-" and _says(hints.name, word):
            points += weight
    if hints.flow_shift is not None and slug.startswith("wan2.1-i2v-14b"):
        # README of Wan2.1: 3.0 for 480P, 5.0 for 720P.
        points += 2 if (hints.flow_shift <= 3.5) == slug.endswith("480p") else 0
    return points


def _says(name: str, word: str) -> bool:
    return (f"-{word}" if word in _AT_START else f"-{word}-") in name


def _is_repository(slug: str, hints: Hints) -> bool:
    return hints.repository is not None and VARIANTS[slug].repository == hints.repository
