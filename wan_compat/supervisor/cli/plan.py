"""`wan-compat plan MODEL`: memory per phase, and the way to run that fits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from wan_compat.supervisor.cli.options import Json, Quiet, Verbose
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
    NumVideos,
    OffloadOption,
    PrecisionOption,
    VaeTiling,
    VideosAtOnce,
)
from wan_compat.supervisor.cli.quantities import parse_bytes, show_bytes, show_frames
from wan_compat.supervisor.cli.session import Session
from wan_compat.supervisor.cli.task_options import Task

if TYPE_CHECKING:
    from wan_compat.policies.planning.choice import Evaluated
    from wan_compat.supervisor.plan_report import PlanReport

_OTHERS = 5  # ways that were not taken, unless -v


def plan(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or single file of a Wan model, or a hub id in the cache.")],
    task: Annotated[Task | None, typer.Option(help="What would be made. Default: the model's usual task.")] = None,
    width: Annotated[int | None, typer.Option("--width", metavar="PIXELS", help="Of the video.")] = None,
    height: Annotated[int | None, typer.Option("--height", metavar="PIXELS", help="Of the video.")] = None,
    num_frames: Annotated[int | None, typer.Option("--num-frames", metavar="N", help="Length of the video.")] = None,
    num_videos: NumVideos = None,
    videos_at_once: VideosAtOnce = None,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", metavar="X", help="1 or less: no second prompt.")
    ] = None,
    vram: Annotated[
        int | None,
        typer.Option(
            "--vram",
            metavar="SIZE",
            parser=parse_bytes,
            help="Plan for a GPU with this much; 0 for none. Default: here.",
        ),
    ] = None,
    ram: Annotated[
        int | None,
        typer.Option(
            "--ram", metavar="SIZE", parser=parse_bytes, help="Main memory to plan for. Default: what is free."
        ),
    ] = None,
    components: Components = None,
    transformer: Transformer = None,
    transformer_2: Transformer2 = None,
    vae: Vae = None,
    text_encoder: TextEncoder = None,
    image_encoder: ImageEncoder = None,
    lora: Lora = None,
    quantize: Quantize = None,
    device: DeviceOption = None,
    gpu_memory_limit: GpuMemoryLimit = None,
    precision: PrecisionOption = None,
    offload: OffloadOption = None,
    vae_tiling: VaeTiling = None,
    attention_backend: AttentionBackend = None,
    cache: CacheOption = None,
    layerwise_casting: LayerwiseCastingOption = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Say how much memory each phase takes and which way to run fits, before anything is loaded.

    Reads configurations and weight headers; starts nothing. Ends with 0 when a plan fits and with 6 when none does,
    and then names the nearest request that would. Plans for a GPU are computed, not tried.
    """
    session: Session = context.obj.louder(json=json, quiet=quiet, verbose=verbose)
    session.model = model

    from wan_compat.supervisor.cli.runner import build_request
    from wan_compat.supervisor.plan_report import plan_model
    from wan_compat.supervisor.settings import load_settings

    files = {
        "components": components,
        "transformer": transformer,
        "transformer_2": transformer_2,
        "vae": vae,
        "text_encoder": text_encoder,
        "image_encoder": image_encoder,
    }
    request = build_request(
        model=model,
        prompt="",
        task=task.value if task else None,
        width=width,
        height=height,
        num_frames=num_frames,
        num_videos=1 if num_videos is None else num_videos,
        videos_at_once=1 if videos_at_once is None else videos_at_once,
        guidance_scale=guidance_scale,
        device=device or "auto",
        gpu_memory_limit_bytes=gpu_memory_limit,
        precision=precision.value if precision else "auto",
        offload=offload.value if offload else None,
        vae_tiling=vae_tiling,
        attention_backend=attention_backend,
        cache=cache.value if cache else None,
        layerwise_casting=layerwise_casting.value if layerwise_casting else None,
        **parts_fields(files, lora, quantize),
    )
    report = plan_model(request, vram_bytes=vram, ram_bytes=ram, policy=load_settings().policy)
    if session.json:
        session.document(report.to_json())
    else:
        session.say("\n".join(lines(report, verbose=session.verbose)))
    return report.exit_code


def lines(report: PlanReport, *, verbose: bool = False) -> Iterator[str]:
    """Yield the report for people."""
    from wan_compat.policies.planning.choice import IN_8_BITS

    choice, job = report.choice, report.choice.job
    chosen = choice.chosen
    on_gpu = chosen.candidate.setting.device == "cuda"
    at_once = "" if job.at_once == 1 else f"{job.at_once} videos at once, each of "
    clip = f"{show_frames(job.num_frames)} of {job.width}x{job.height}"
    yield f"{at_once}{clip}, {report.task} with {report.pipeline_class}"
    if report.parts:
        yield f"  of {', '.join(report.parts)}"
    machine = choice.machine
    have = f"{show_bytes(machine.ram_limit_bytes)} of memory for a worker"
    yield f"  on {f'{show_bytes(machine.vram_bytes)} of VRAM, ' if machine.gpu else ''}{have}"
    yield ""
    yield f"  {'phase':<13} {'VRAM':>9} {'memory':>9}" if on_gpu else f"  {'phase':<13} {'memory':>9}"
    for name, item in chosen.phases.items():
        vram = f" {show_bytes(item.vram_bytes):>9}" if on_gpu else ""
        yield f"  {name:<13}{vram} {show_bytes(item.ram_bytes):>9}"
    yield ""
    verdict = "fits" if choice.fits else "does not fit; nearest to it"
    cost = chosen.candidate.cost
    time = (
        "the fastest way" if cost.factor == 1 else f"{cost.factor:g} times the time of the fastest way ({cost.basis})"
    )
    called = (
        "no offload" if chosen.candidate.name == "none" else chosen.candidate.name
    )  # "fits: none" says the opposite
    yield f"  {verdict}: {called}, {time}"
    for reason in chosen.candidate.reasons if choice.fits else chosen.short:
        yield f"    - {reason}"
    others = [item for item in choice.weighed if item is not chosen]
    shown = others if verbose else _worth_showing(others, choice.fits)
    if shown:
        yield ""
        yield "  other ways"
    for other in shown:
        takes = f"{show_bytes(other.vram_bytes)} of VRAM, " if other.vram_bytes else ""
        lacks = f"; {other.short[0]}" if other.short else ""
        way, factor = other.candidate.name, other.candidate.cost.factor
        yield f"    {way:<24} x{factor:<6g} {takes}{show_bytes(other.ram_bytes)}{lacks}"
    if report.nearest is not None:
        yield ""
        yield f"  Instead: {report.nearest}"
    if choice.fits_in_8_bits:
        yield f"  Or {IN_8_BITS}, which fits and changes pixels"
    for remark in report.remarks:
        yield f"  {remark}"


def _worth_showing(others: list[Evaluated], fits: bool) -> list[Evaluated]:
    """Cheaper ways that do not fit say why this one was taken; where none fits, any tells."""
    return [item for item in others if not item.fits][:_OTHERS] if fits else others[:_OTHERS]
