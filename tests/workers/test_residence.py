"""Components that leave memory, and embeddings that are kept: the same frames, and the memory really is free."""

from __future__ import annotations

from typing import Any

from tests.workers import plans
from tests.workers.inside import in_torch_process


def leaving(made: Any, kind: str = "t2v") -> tuple[Any, Any, list[int]]:
    """Return the residence of a pipeline's text encoder, its kept embeddings, and a list that grows with each load."""
    import transformers

    from wan_compat.workers.embeddings import keep_embeddings
    from wan_compat.workers.residence import Residence

    loads: list[int] = []

    def load() -> Any:
        loads.append(1)
        return transformers.UMT5EncoderModel.from_pretrained(plans.folder(kind, "text_encoder"))

    residence = Residence(made.text_encoder, load)
    return residence, keep_embeddings(made, residence), loads


@in_torch_process
def test_frames_are_equal_whether_the_text_encoder_stays_leaves_or_was_away() -> None:
    import torch

    from wan_compat.workers.memory_count import resident_bytes

    expected = plans.frames(plans.pipeline())
    other = plans.frames(plans.pipeline(), prompt="a green square")
    made = plans.pipeline()
    whole = resident_bytes([made.text_encoder])
    residence, embeddings, loads = leaving(made)
    assert torch.equal(plans.frames(made), expected)
    assert residence.away and resident_bytes([made.text_encoder]) < whole / 50
    assert torch.equal(plans.frames(made), expected)
    assert (embeddings.computed, embeddings.reused, loads) == (2, 2, [])
    assert torch.equal(plans.frames(made, prompt="a green square"), other)
    assert (embeddings.computed, embeddings.reused, loads) == (3, 3, [1])
    assert residence.away


@in_torch_process
def test_another_length_is_another_embedding() -> None:
    made = plans.pipeline()
    _, embeddings, _ = leaving(made)
    for length in (16, 32, 16):
        made.encode_prompt("a red ball", do_classifier_free_guidance=False, max_sequence_length=length)
    assert (embeddings.computed, embeddings.reused) == (2, 1)


@in_torch_process
def test_the_text_encoder_leaves_when_encoding_fails() -> None:
    made = plans.pipeline()
    residence, _, _ = leaving(made)
    try:
        made.encode_prompt(["a", "b"], ["c"])
    except ValueError:
        pass
    else:
        raise AssertionError("it was encoded")
    assert residence.away


@in_torch_process
def test_what_is_kept_is_bounded_and_the_oldest_goes_first() -> None:
    import torch

    from wan_compat.workers.embeddings import Embeddings

    kept = Embeddings(max_bytes=100, max_prompts=3)
    for name in "abc":
        kept.keep(name, torch.zeros(8))
    assert kept.take("a") is not None
    kept.keep("d", torch.zeros(8))
    assert kept.take("b") is None and kept.take("a") is not None and kept.nbytes == 96
    kept.keep("large", torch.zeros(99))
    assert kept.nbytes == 0


@in_torch_process
def test_what_a_pipeline_writes_to_is_a_copy() -> None:
    made = plans.pipeline()
    leaving(made)
    given, _ = made.encode_prompt("a red ball", do_classifier_free_guidance=False, max_sequence_length=16)
    value = given.clone()
    given.zero_()
    again, _ = made.encode_prompt("a red ball", do_classifier_free_guidance=False, max_sequence_length=16)
    assert (again == value).all()


@in_torch_process
def test_a_pipeline_without_the_seam_is_left_alone() -> None:
    import types

    from wan_compat.workers.embeddings import keep_embeddings

    other = types.SimpleNamespace(encode_prompt=print)
    assert keep_embeddings(other) is None and other.encode_prompt is print
