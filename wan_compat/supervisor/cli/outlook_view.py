"""`generate --dry-run`: what would be made, in the words that the finished job is told in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wan_compat.supervisor.cli.quantities import show_bytes, show_frames
from wan_compat.supervisor.cli.session import Session

if TYPE_CHECKING:
    from wan_compat.protocol.values import GenerationRequest
    from wan_compat.supervisor.dry_run import Outlook


def show_outlook(session: Session, request: GenerationRequest, *, min_tier: str | None = None) -> None:
    """Decide everything about a job and tell it. Raises what the job would end with before its worker."""
    from wan_compat.supervisor.cli.runner import supervisor_of_settings
    from wan_compat.supervisor.dry_run import look_ahead

    with supervisor_of_settings(request.mode, min_tier) as supervisor:
        outlook = look_ahead(request, supervisor.policy)
    if session.json:
        session.document(outlook.to_json())
    else:
        session.say(describe_outlook(outlook))


def describe_outlook(outlook: Outlook) -> str:
    params, document = outlook.resolved.params, outlook.to_json()
    frames, seed = params.frames, document["generation_params"]["seed"]
    names = ", ".join(outlook.outputs)
    lines = [
        f"Would write {names}: {show_frames(frames.num_frames)}, {frames.width}x{frames.height}, "
        f"{outlook.resolved.fps:g} fps",
        f"  {params.task} by {document['pipeline_class']}: {params.num_inference_steps} steps, "
        f"guidance {params.guidance_scale:g}, {'a seed that is drawn' if seed is None else f'seed {seed}'}",
        f"  {document['mode']} mode, sandbox tier {outlook.min_tier} or better, "
        f"worker's memory up to {show_bytes(outlook.memory_limit_bytes)}",
    ]
    if document["plan"] is not None:
        lines.append(f"  plan {document['plan']['name']}: {'; '.join(document['plan']['reasons']) or 'as it is'}")
    lines.append("Nothing was started and nothing was written.")
    return "\n".join(lines)
