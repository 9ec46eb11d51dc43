"""`wan-compat batch run FILE`: many videos from one file (docs/batch.md)."""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from wan_compat.protocol.errors import (
    BatchInvalid,
    InvalidRequest,
)
from wan_compat.supervisor.cli.downloads import Download, obtain
from wan_compat.supervisor.cli.operations import LogPrompts, LogTo, MetricsTo, watched
from wan_compat.supervisor.cli.options import Isolation, Json, MinTier, Mode, PhaseTimeout, Quiet, Verbose
from wan_compat.supervisor.cli.parts_options import (
    Components,
    ImageEncoder,
    Lora,
    Quantize,
    TextEncoder,
    Transformer,
    Transformer2,
    Vae,
    parts_fields,
)
from wan_compat.supervisor.cli.plan_options import (
    AttentionBackend,
    CacheOption,
    DeviceOption,
    GpuMemoryLimit,
    LayerwiseCastingOption,
    OffloadOption,
    PrecisionOption,
    VaeTiling,
)
from wan_compat.supervisor.cli.quantities import parse_bytes, parse_seconds
from wan_compat.supervisor.cli.session import Session
from wan_compat.supervisor.cli.task_options import (
    BackgroundVideo,
    ConditioningScale,
    FaceVideo,
    Image,
    LastImage,
    Mask,
    PoseVideo,
    References,
    Strength,
    TaskOption,
    Video,
)
from wan_compat.supervisor.cli.video_options import (
    Audio,
    Codec,
    ContactSheet,
    CropOdd,
    FormatName,
    Fragmented,
    MetadataOption,
    Poster,
    QualityOption,
    given,
)

MAX_WORKERS = 64


# The values of supervisor.batch.reading.FORMATS, written again for the reason that options.py gives.
class FormatIn(enum.StrEnum):
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    YAML = "yaml"
    TXT = "txt"


def run(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="What to make: .jsonl, .csv, .yaml, or .txt of prompts.")],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="Folder of the videos; made if missing.")],
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="For lines that name none.")] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="TEMPLATE", help="Of the videos. Default: {index:04}-{slug}-{seed}."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, max=MAX_WORKERS, help="Videos made at once.")
    ] = 1,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Make part I of N; others make the rest, anywhere.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files of other origin that have the names of videos to make.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also what failed in earlier runs of this folder.")
    ] = False,
    max_retries: Annotated[
        int, typer.Option("--max-retries", metavar="N", min=0, max=100, help="More attempts at a video that fails.")
    ] = 0,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Start nothing more after a failure.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, list the videos, make none.")] = False,
    format_in: Annotated[
        FormatIn | None, typer.Option("--format-in", help="Format of FILE. Default: by its name.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="For lines that have none, as with many images.")
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", metavar="TEXT", help="What to keep away from.")
    ] = None,
    task: TaskOption = None,
    image: Image = None,
    last_image: LastImage = None,
    video: Video = None,
    mask: Mask = None,
    pose_video: PoseVideo = None,
    face_video: FaceVideo = None,
    background_video: BackgroundVideo = None,
    reference: References = None,
    strength: Strength = None,
    conditioning_scale: ConditioningScale = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Default: drawn from each line's content.")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", "--num-videos", metavar="N|LIST", help="Videos per line, or their seeds: 4, or 1,2,3."),
    ] = None,
    width: Annotated[int | None, typer.Option("--width", metavar="PIXELS", help="Must fit the model.")] = None,
    height: Annotated[int | None, typer.Option("--height", metavar="PIXELS", help="Must fit the model.")] = None,
    num_frames: Annotated[int | None, typer.Option("--num-frames", metavar="N", help="Length; 4k + 1.")] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option("--num-inference-steps", metavar="N", help="Denoising steps: more is slower.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", metavar="X", help="How closely to follow the prompt.")
    ] = None,
    fps: Annotated[float | None, typer.Option("--fps", metavar="X", help="Frames per second of the files.")] = None,
    format: FormatName = None,
    codec: Codec = None,
    quality: QualityOption = None,
    metadata: MetadataOption = None,
    crop_odd: CropOdd = False,
    fragmented: Fragmented = False,
    audio: Audio = None,
    poster: Poster = False,
    contact_sheet: ContactSheet = False,
    components: Components = None,
    transformer: Transformer = None,
    transformer_2: Transformer2 = None,
    vae: Vae = None,
    text_encoder: TextEncoder = None,
    image_encoder: ImageEncoder = None,
    lora: Lora = None,
    quantize: Quantize = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    offload: OffloadOption = None,
    vae_tiling: VaeTiling = None,
    attention_backend: AttentionBackend = None,
    cache: CacheOption = None,
    layerwise_casting: LayerwiseCastingOption = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="TIME", parser=parse_seconds, help="For each video: 10m.")
    ] = None,
    phase_timeout: PhaseTimeout = None,
    memory_limit: Annotated[
        int | None, typer.Option("--memory-limit", metavar="SIZE", parser=parse_bytes, help="Of each worker: 8GB.")
    ] = None,
    gpu_memory_limit: GpuMemoryLimit = None,
    mode: Annotated[Mode | None, typer.Option("--mode", help="trust runs approved code only. Default: safe.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="The original spelling of --mode trust.")
    ] = False,
    safe_mode: Annotated[bool, typer.Option("--safe-mode", help="The original spelling of --mode safe.")] = False,
    restricted: Annotated[
        bool,
        typer.Option("--restricted", help="Safe mode: run the repository's code if it keeps to an audited subset."),
    ] = False,
    isolation: Annotated[
        Isolation, typer.Option("--isolation", help="job: a fresh worker for every video.")
    ] = Isolation.MODEL,
    min_tier: Annotated[
        MinTier | None,
        typer.Option("--min-tier", help="Weakest sandbox to accept; see doctor. Default: the settings', else B."),
    ] = None,
    no_recovery: Annotated[
        bool, typer.Option("--no-recovery", help="Let a video fail at its first error, instead of trying other ways.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask at the first use of a model.")] = False,
    download: Download = False,
    log_file: LogTo = None,
    log_prompts: LogPrompts = False,
    metrics: MetricsTo = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Make the videos of FILE in DIR. The same command once more goes on where it stopped, and makes nothing twice.

    Options are defaults for lines that do not say otherwise. All lines are checked before the first video is begun.
    Ctrl-C finishes what is being made, a second one stops at once.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    session.observed(log_file=log_file, log_prompts=log_prompts, metrics=metrics)
    from wan_compat.policies.batch.names import DEFAULT_TEMPLATE
    from wan_compat.policies.batch.progress import Shard, parse_shard
    from wan_compat.policies.phases import parse_phase_timeouts
    from wan_compat.protocol import values
    from wan_compat.supervisor.batch.contract import RunOptions
    from wan_compat.supervisor.batch.execution import execute, holding
    from wan_compat.supervisor.batch.folder import BatchFolder
    from wan_compat.supervisor.batch.preflight import prepare
    from wan_compat.supervisor.batch.reading import read_batch
    from wan_compat.supervisor.cli.batch_view import batch_view
    from wan_compat.supervisor.cli.batch_words import conclude, describe_plan, tell_plan
    from wan_compat.supervisor.cli.confirm import confirm_first_use
    from wan_compat.supervisor.cli.generate import settle_mode
    from wan_compat.supervisor.client import Supervisor
    from wan_compat.supervisor.settings import load_settings

    chosen = settle_mode(mode, trust_remote_code=trust_remote_code, safe_mode=safe_mode)
    try:
        part = parse_shard(shard) if shard is not None else Shard()
    except ValueError as error:
        raise InvalidRequest(f"--shard {error}", hint="--shard 2/4 is the second of four parts") from error
    defaults = given(
        model=model,
        prompt=prompt,
        negative_prompt=negative_prompt,
        task=task.value if task is not None else None,
        image=image,
        last_image=last_image,
        video=video,
        mask=mask,
        pose_video=pose_video,
        face_video=face_video,
        background_video=background_video,
        references=list(reference) if reference else None,
        strength=strength,
        conditioning_scale=conditioning_scale,
        seed=seed,
        seeds=seeds,
        width=width,
        height=height,
        num_frames=num_frames,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        fps=fps,
        format=format,
        codec=codec,
        quality=quality,
        metadata=metadata,
        crop_odd=crop_odd,
        fragmented=fragmented,
        audio=audio,
        poster=poster,
        contact_sheet=contact_sheet,
        precision=precision.value if precision else None,
        offload=offload.value if offload else None,
        attention_backend=attention_backend,
        cache=cache.value if cache else None,
        layerwise_casting=layerwise_casting.value if layerwise_casting else None,
        timeout_s=timeout,
        phase_timeouts=parse_phase_timeouts(phase_timeout) or None,
    )
    if vae_tiling is not None:
        defaults["vae_tiling"] = vae_tiling  # False is a wish here
    files = {
        "components": components,
        "transformer": transformer,
        "transformer_2": transformer_2,
        "vae": vae,
        "text_encoder": text_encoder,
        "image_encoder": image_encoder,
    }
    defaults |= parts_fields(files, lora, quantize)
    run_fields: dict[str, Any] = {
        "mode": values.Mode(chosen.value),
        "restricted": restricted,
        "isolation": values.Isolation(isolation.value),
        "recover": not no_recovery,
        "memory_limit_bytes": memory_limit,
        "gpu_memory_limit_bytes": gpu_memory_limit,
        "device": device or "auto",
    }
    if restricted and chosen is Mode.TRUST:
        raise InvalidRequest("--restricted is of safe mode; trust mode runs approved code as it is")
    session.model = model
    folder = BatchFolder(out)

    def fetch(models: Sequence[str]) -> None:
        for each in models:
            obtain(session, each, download=download, code=chosen is Mode.TRUST)

    def make_supervisor() -> Supervisor:
        tier = min_tier.value if min_tier else None
        made = Supervisor(mode=chosen.value, policy=load_settings().policy, min_tier=tier, workers=workers)
        made.program = "wan-compat batch run"
        return watched(session, made)

    try:
        with holding(folder, part) as make_and_hold:
            plan = prepare(
                read_batch(file, format_in.value if format_in else None),
                folder,
                defaults,
                template=name if name is not None else DEFAULT_TEMPLATE,
                shard=part,
                retry_failed=retry_failed,
                overwrite=overwrite,
                run_fields=run_fields,
                policy=load_settings().policy,
                workers=workers,
                fetch=fetch if download else None,
            )
            if dry_run:
                tell_plan(session, plan)
                return 0
            for each in plan.models:
                confirm_first_use(session, each, chosen, yes=yes)
            supervisor = make_supervisor()  # which refuses what the policy does not allow, before a folder is made
            make_and_hold()
            session.note(describe_plan(plan))
            options = RunOptions(
                workers=workers,
                shard=part,
                max_retries=max_retries,
                fail_fast=fail_fast,
                overwrite=overwrite,
                fields=run_fields,
            )
            with batch_view(session) as view:
                outcome, summary = execute(plan, options, supervisor, view, mode=chosen.value)
    except BatchInvalid as error:
        if not session.json:
            for problem in error.details["problems"]:
                print(problem, file=sys.stderr)  # with --quiet too; cleaned when it was put together
        raise
    return conclude(session, outcome, summary)
