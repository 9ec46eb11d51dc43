"""Loading in a real worker: every variant loads, and nothing that does not fit is ever filled with random weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.assets.tiny_wan import tiny_model
from tests.workers import broken
from tests.workers.harness import WorkerProcess, ZygoteProcess, parameters, pipeline_spec
from wan_compat.protocol import messages as m
from wan_compat.protocol.values import ComponentSpec, PipelineSpec


def load(zygote: ZygoteProcess, confined: bool, model: Path, **changes: Any) -> m.ModelLoaded | m.Failed:
    with zygote.spawn(model, confined=confined) as worker:
        worker.handshake()
        answer = worker.load(pipeline_spec(model, **changes))
        worker.kill()
    return answer


@pytest.mark.parametrize("kind", ["t2v", "a14b", "ti2v", "i2v", "i2v22", "vace"])
def test_every_variant_loads_with_proved_streaming(zygote: ZygoteProcess, confined: bool, kind: str) -> None:
    loaded = load(zygote, confined, tiny_model(kind))
    assert isinstance(loaded, m.ModelLoaded), loaded
    assert loaded.streaming and "equal" in loaded.streaming_reason
    assert set(loaded.parameters) >= {"text_encoder", "transformer", "vae"}
    assert ("transformer_2" in loaded.parameters) == (kind in ("a14b", "i2v22"))


def test_each_part_is_reported_as_progress(zygote: ZygoteProcess, confined: bool) -> None:
    model = tiny_model("t2v")
    with zygote.spawn(model, confined=confined) as worker:
        worker.handshake()
        worker.send(m.LoadModel(pipeline=pipeline_spec(model)))
        steps = []
        while isinstance(message := worker.receive(), m.Progress):
            steps.append((message.phase, message.step, message.total))
        worker.kill()
    assert isinstance(message, m.ModelLoaded)
    assert steps == [("load", step, 5) for step in range(1, 6)]


def _drop(part: str, name: str) -> Callable[[Path], None]:
    return lambda model: broken.change(model, part, lambda tensors: tensors.pop(name))


def _add(part: str) -> Callable[[Path], None]:
    def edit(tensors: dict[str, Any]) -> None:
        tensors["surprise.weight"] = next(iter(tensors.values()))

    return lambda model: broken.change(model, part, edit)


def _reshape(part: str, name: str) -> Callable[[Path], None]:
    return lambda model: broken.change(model, part, lambda tensors: tensors.update({name: tensors[name][:-1].copy()}))


def _overwrite(part: str) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        (path,) = (model / part).glob("*.safetensors")
        path.write_bytes(b"\xff" * 4096)

    return edit


def _truncate(part: str) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        (path,) = (model / part).glob("*.safetensors")
        path.write_bytes(path.read_bytes()[:-1000])

    return edit


def _remove(part: str) -> Callable[[Path], None]:
    return lambda model: shutil.rmtree(model / part)


ENCODER_KEY = "encoder.block.0.layer.0.SelfAttention.q.weight"


@pytest.mark.parametrize(
    ("part", "edit", "words"),
    [
        ("transformer", _drop("transformer", "proj_out.weight"), "proj_out.weight"),
        ("transformer", _add("transformer"), "surprise.weight"),
        ("transformer", _reshape("transformer", "proj_out.bias"), "proj_out.bias"),
        ("vae", _drop("vae", "decoder.conv_in.weight"), "decoder.conv_in.weight"),
        ("text_encoder", _drop("text_encoder", ENCODER_KEY), ENCODER_KEY),
        ("text_encoder", _add("text_encoder"), "surprise.weight"),
        ("text_encoder", _reshape("text_encoder", ENCODER_KEY), "SelfAttention.q.weight"),
        ("text_encoder", _drop("text_encoder", "shared.weight"), "shared.weight"),
        ("transformer", _overwrite("transformer"), "SafetensorError"),
        ("vae", _truncate("vae"), "SafetensorError"),
        ("text_encoder", _truncate("text_encoder"), "SafetensorError"),
        ("transformer", lambda model: broken.configure(model, "transformer", num_layers=3), "blocks.2"),
        ("transformer", lambda model: broken.configure(model, "transformer", num_layers="many"), "transformer"),
        ("text_encoder", lambda model: broken.configure(model, "text_encoder", d_model=48), "text_encoder"),
        ("vae", _remove("vae"), "vae"),
    ],
)
def test_what_does_not_fit_is_model_corrupt_and_named(
    zygote: ZygoteProcess,
    confined: bool,
    tmp_path: Path,
    part: str,
    edit: Callable[[Path], None],
    words: str,
) -> None:
    model = broken.copy("t2v", tmp_path)
    spec = pipeline_spec(model)
    edit(model)
    with zygote.spawn(model, confined=confined) as worker:
        worker.handshake()
        answer = worker.load(spec)
        worker.kill()
    assert isinstance(answer, m.Failed), answer
    assert (answer.code, answer.job) == ("model_corrupt", 0), answer
    assert words in answer.message


def test_after_a_failed_load_the_worker_can_load_again(zygote: ZygoteProcess, confined: bool, tmp_path: Path) -> None:
    model = tiny_model("t2v")
    with zygote.spawn(model, confined=confined) as worker:
        worker.handshake()
        parts = tuple(
            part.model_copy(update={"subfolder": "nowhere"}) if part.name == "vae" else part
            for part in pipeline_spec(model).components
        )
        assert isinstance(worker.load(pipeline_spec(model, components=parts)), m.Failed)
        assert isinstance(worker.load(pipeline_spec(model)), m.ModelLoaded)
        assert isinstance(worker.generate(parameters()).end, m.Generated)
        worker.kill()


def _with_part(spec: PipelineSpec, **changes: Any) -> tuple[ComponentSpec, ...]:
    return tuple(part.model_copy(update=changes) if part.name == "transformer" else part for part in spec.components)


@pytest.mark.parametrize("name", ["AutoModel", "DiffusionPipeline", "CogVideoXTransformer3DModel", "UMT5EncoderModel"])
def test_a_class_that_is_not_on_the_list_is_not_imported(zygote: ZygoteProcess, confined: bool, name: str) -> None:
    model = tiny_model("t2v")
    answer = load(zygote, confined, model, components=_with_part(pipeline_spec(model), class_name=name))
    assert isinstance(answer, m.Failed) and answer.code == "model_not_compatible"
    assert name in answer.message


def test_a_pipeline_that_is_not_on_the_list_is_refused(zygote: ZygoteProcess, confined: bool) -> None:
    answer = load(zygote, confined, tiny_model("t2v"), pipeline_class="StableDiffusionPipeline")
    assert isinstance(answer, m.Failed) and answer.code == "model_not_compatible"


def test_a_missing_part_is_refused_before_generating(zygote: ZygoteProcess, confined: bool) -> None:
    model = tiny_model("t2v")
    parts = tuple(part for part in pipeline_spec(model).components if part.name != "scheduler")
    answer = load(zygote, confined, model, components=parts)
    assert isinstance(answer, m.Failed) and answer.code == "model_corrupt"
    assert "scheduler" in answer.message


def test_code_named_by_a_config_is_never_run(zygote: ZygoteProcess, confined: bool, tmp_path: Path) -> None:
    """The file is not in the worker's view in safe mode; here it is, and still nothing imports it."""
    model = broken.copy("t2v", tmp_path)
    spec = pipeline_spec(model)
    witness = "raise SystemExit('remote code ran')\n"
    for part in ("transformer", "text_encoder", "tokenizer"):
        (model / part / "evil.py").write_text(witness)
    auto_map = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Slow", "evil.Fast"]}
    broken.configure(model, "transformer", auto_map=auto_map)
    broken.configure(model, "text_encoder", auto_map=auto_map, trust_remote_code=True)
    with zygote.spawn(model, confined=confined) as worker:
        worker.handshake()
        answer = worker.load(spec)
        assert not worker.ended(0)
        worker.kill()
    assert isinstance(answer, m.ModelLoaded | m.Failed)
    assert "remote code ran" not in worker.log.read_text()


def test_cancel_while_loading_ends_it(zygote: ZygoteProcess, confined: bool) -> None:
    model = tiny_model("t2v")
    with zygote.spawn(model, confined=confined) as worker:
        worker.handshake()
        worker.send(m.LoadModel(pipeline=pipeline_spec(model)))
        worker.send(m.Cancel(job=0))
        while isinstance(answer := worker.receive(), m.Progress):
            pass
        worker.kill()
    assert isinstance(answer, m.Failed) and "cancelled" in answer.message


def test_a_text_encoder_with_both_embedding_names_loads(
    zygote: ZygoteProcess, confined: bool, tmp_path: Path, t2v_worker: WorkerProcess
) -> None:
    """Official repositories have `shared.weight`, converted ones `encoder.embed_tokens.weight`, some have both."""
    import numpy as np

    expected = t2v_worker.generate(parameters()).pixels
    for both in (True, False):
        model = broken.copy("t2v", tmp_path / str(both))

        def edit(tensors: dict[str, Any], both: bool = both) -> None:
            name = "shared.weight" if "shared.weight" in tensors else "encoder.embed_tokens.weight"
            value = tensors.pop(name)
            tensors["encoder.embed_tokens.weight"] = value.copy()
            if both:
                tensors["shared.weight"] = value.copy()

        broken.change(model, "text_encoder", edit)
        with zygote.spawn(model, confined=confined) as worker:
            worker.start(model)
            assert np.array_equal(worker.generate(parameters()).pixels, expected)
            worker.kill()
