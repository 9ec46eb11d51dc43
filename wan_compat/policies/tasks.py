"""What a user wants made from what, and whether a model can: the way that fits, or a refusal that says what would.

Everything here is decided before a weight is read: a task that the model does not do, a missing picture, one too many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import get_args

from wan_compat.policies.pipelines import Inputs, Option, Way
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.media import MediaRole
from wan_compat.protocol.values import GenerationRequest, TaskName

ROLES: tuple[MediaRole, ...] = get_args(MediaRole)
# How the command line calls each; the fields of a request are the same with underscores, references in the plural.
FLAGS: Mapping[str, str] = {role: f"--{role.replace('_', '-')}" for role in ROLES}


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a request says about the task: its name, if any, the roles of what was given, the options that were set.
    Where media come later, as for a plan, the name is enough."""

    task: TaskName | None = None
    roles: tuple[MediaRole, ...] = ()
    options: tuple[Option, ...] = ()
    media_later: bool = False


def media_of(request: GenerationRequest) -> tuple[tuple[MediaRole, str], ...]:
    """Return role and path of every picture and video of a request, in the order in which they travel."""
    found: list[tuple[MediaRole, str]] = []
    for role in ROLES:
        if role == "reference":
            found += ((role, path) for path in request.references)
        elif (path := getattr(request, role)) is not None:
            found.append((role, path))
    return tuple(found)


def wish_of(request: GenerationRequest) -> Wish:
    options = tuple(name for name in get_args(Option) if getattr(request, name) is not None)
    return Wish(
        task=request.task.value if request.task is not None else None,
        roles=tuple(role for role, _ in media_of(request)),
        options=options,
    )


def choose_way(ways: tuple[Way, ...], wish: Wish | None, what: str) -> Way:
    """Return the way that does what is wished; the usual one where nothing is wished.

    Args:
        ways: What the model can do, the usual first.
        wish: None does not ask whether media are there (`check`).
        what: The model, for messages.

    Raises:
        InvalidRequest: Another task than the model does, media that are missing or that it does not take, an option
            that means nothing to it.
    """
    if wish is None:
        return ways[0]
    candidates = tuple(way for way in ways if wish.task in (None, way.task))
    if not candidates:
        raise InvalidRequest(
            f"{what} does {_listed(way.task for way in ways)}, not {wish.task}", hint=_use_instead(wish.task)
        )
    fitting = [way for way in candidates if wish.media_later or _objection(way.inputs, wish) is None]
    if not fitting:
        # What takes all that was given is what was meant, and lacks something.
        meant = [way for way in candidates if wish.roles and set(wish.roles) <= way.inputs.known]
        if len(candidates) == 1 or meant:
            way = (*meant, *candidates)[0]
            objection = _objection(way.inputs, wish)
            raise InvalidRequest(f"{way.task} with {what} {objection}", hint=_hint(way.inputs, wish))
        given = " ".join(dict.fromkeys(FLAGS[role] for role in wish.roles)) or "nothing but the prompt"
        able = "; ".join(dict.fromkeys(_described(way) for way in candidates))
        raise InvalidRequest(f"{what} does {able}; given was {given}", hint=_use_instead(_task_of(wish)))
    way = fitting[0]
    for option in wish.options:
        if option not in way.inputs.options:
            raise InvalidRequest(
                f"{way.task} with {what} has no {option}", hint=f"leave --{option.replace('_', '-')} out"
            )
    return way


def _objection(inputs: Inputs, wish: Wish) -> str | None:
    missing = [role for role in inputs.needs if role not in wish.roles]
    if missing:
        return f"needs {_flags(missing)}"
    if inputs.one_of and not set(inputs.one_of) & set(wish.roles):
        return f"needs {' or '.join(FLAGS[role] for role in inputs.one_of)}"
    unknown = [role for role in dict.fromkeys(wish.roles) if role not in inputs.known]
    if unknown:
        return f"takes no {_flags(unknown)}"
    for role, other in inputs.only_with.items():
        if role in wish.roles and other not in wish.roles:
            return f"needs {FLAGS[other]} for its {FLAGS[role]}"
    return None


def _hint(inputs: Inputs, wish: Wish) -> str:
    unknown = [role for role in dict.fromkeys(wish.roles) if role not in inputs.known]
    if unknown:
        return f"leave {_flags(unknown)} out, or use a model that takes it"
    return "docs/tasks.md says what each task takes"


def _described(way: Way) -> str:
    wanted = [FLAGS[role] for role in way.inputs.needs]
    if way.inputs.one_of:
        wanted.append(" or ".join(FLAGS[role] for role in way.inputs.one_of))
    return f"{way.task} with {' and '.join(wanted)}" if wanted else f"{way.task} from the prompt alone"


def _task_of(wish: Wish) -> str | None:
    """Return the task that the media speak for, where no name was given."""
    roles = set(wish.roles)
    for task, wanted in (
        ("animate", {"pose_video", "face_video", "background_video"}),
        ("vace", {"reference", "mask"}),
        ("flf2v", {"last_image"}),
        ("v2v", {"video"}),
        ("i2v", {"image"}),
    ):
        if roles & wanted:
            return wish.task or task
    return wish.task or "t2v"


def _use_instead(task: str | None) -> str:
    from wan_compat.policies.judgement.identity import TASKS, models_for  # only a refusal needs it

    others = models_for(task) if task is not None and task in TASKS else ()
    return f"for {task} use {' or '.join(others)}" if others else "`wan-compat check MODEL` says what a model does"


def _flags(roles: Iterable[str]) -> str:
    return _listed(FLAGS[role] for role in roles)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))
