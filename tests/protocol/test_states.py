"""What is not in the table is refused; the first violation is the last message."""

import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.test_codec import PARAMS, PIPELINE, SAMPLES_FROM_WORKER, SAMPLES_TO_WORKER
from wan_compat.protocol import messages as m
from wan_compat.protocol.errors import ProtocolViolation
from wan_compat.protocol.states import (
    MAX_STEPS_OF_PHASE,
    MAX_TENSORS,
    MAX_UNANSWERED_PINGS,
    RECEIVE,
    SEND,
    Conversation,
    WorkerState,
)

HELLO, READY, PROGRESS, LOADED, PART, GENERATED, LISTED, OPENED, SENT, CANCELLED, FAILED, PONG = SAMPLES_FROM_WORKER
OF_A_CONVERSION = (WorkerState.OPENING, WorkerState.OPENED, WorkerState.SENDING)


OPEN, SEND_TENSORS = (
    next(message for message in SAMPLES_TO_WORKER if isinstance(message, kind))
    for kind in (m.OpenWeights, m.SendTensors)
)


def conversation_in(state: WorkerState) -> tuple[Conversation, int]:
    """Walk a fresh conversation to `state`; return it and the next sequence number."""
    talk = Conversation()
    steps = [
        (WorkerState.GREETED, lambda seq: talk.received(seq, HELLO)),
        (WorkerState.READY, lambda seq: (talk.sending(m.Welcome()), talk.received(seq, READY))),
        (WorkerState.LOADING, lambda seq: talk.sending(m.LoadModel(pipeline=PIPELINE))),
        (WorkerState.LOADED, lambda seq: talk.received(seq, LOADED)),
        (WorkerState.GENERATING, lambda seq: talk.sending(m.Generate(job=1, params=PARAMS))),
    ]
    if state in OF_A_CONVERSION:
        steps[2:] = [
            (WorkerState.OPENING, lambda seq: talk.sending(OPEN)),
            (WorkerState.OPENED, lambda seq: talk.received(seq, OPENED)),
            (WorkerState.SENDING, lambda seq: talk.sending(SEND_TENSORS)),
        ]
    seq = 1
    for reached, step in steps:
        if talk.state == state:
            break
        before = talk._received
        step(seq)
        seq += talk._received - before
        assert talk.state == reached
    return talk, seq


@pytest.mark.parametrize("state", WorkerState)
@pytest.mark.parametrize("message", SAMPLES_FROM_WORKER, ids=lambda message: message.type)
def test_only_messages_in_the_table_are_received(state, message):
    talk, seq = conversation_in(state)
    if isinstance(message, m.Cancelled):
        message = m.Cancelled(job=1)
    if isinstance(message, m.Progress) and state is WorkerState.GENERATING:
        message = m.Progress(job=1, phase="denoise", step=1, total=4)
    if isinstance(message, m.Failed) and state in (WorkerState.LOADING, WorkerState.OPENING):
        message = m.Failed(job=0, code="x", message="y")
    if isinstance(message, m.PartLoaded) and state is WorkerState.LOADING:
        talk, seq = conversation_in(WorkerState.READY)
        talk.sending(m.LoadPart(pipeline=PIPELINE, component="vae"))
    if isinstance(message, m.Pong) and state not in (WorkerState.CONNECTING, WorkerState.GREETED):
        talk.sending(m.Ping(nonce=message.nonce))
    if type(message) in RECEIVE[state]:
        talk.received(seq, message)
        assert talk.state == RECEIVE[state][type(message)]
    else:
        with pytest.raises(ProtocolViolation):
            talk.received(seq, message)


@pytest.mark.parametrize("state", WorkerState)
@pytest.mark.parametrize("message", SAMPLES_TO_WORKER, ids=lambda message: message.type)
def test_only_messages_in_the_table_are_sent(state, message):
    talk, _ = conversation_in(state)
    if type(message) in SEND[state]:
        talk.sending(message)
    else:
        with pytest.raises(ProtocolViolation):
            talk.sending(message)


def test_tables_name_every_message_at_least_once():
    def types(union):
        return set(typing.get_args(typing.get_args(union)[0]))

    assert {kind for row in RECEIVE.values() for kind in row} == types(m.FromWorker)
    assert {kind for row in SEND.values() for kind in row} == types(m.ToWorker)


def test_a_part_is_no_answer_to_a_model_nor_a_model_to_a_part():
    talk, seq = conversation_in(WorkerState.LOADING)
    with pytest.raises(ProtocolViolation):
        talk.received(seq, PART)
    talk, seq = conversation_in(WorkerState.READY)
    talk.sending(m.LoadPart(pipeline=PIPELINE, component="vae"))
    with pytest.raises(ProtocolViolation):
        talk.received(seq, LOADED)


@pytest.mark.parametrize("seq", [0, 1, 3, 10])
def test_repeated_or_skipped_sequence_number_is_a_violation(seq):
    talk = Conversation()
    talk.received(1, HELLO)
    with pytest.raises(ProtocolViolation):
        talk.received(seq, READY)


def test_pong_without_ping_or_twice_is_a_violation():
    talk, seq = conversation_in(WorkerState.LOADED)
    with pytest.raises(ProtocolViolation):
        talk.received(seq, m.Pong(nonce=1))
    talk.sending(m.Ping(nonce=1))
    talk.received(seq, m.Pong(nonce=1))
    with pytest.raises(ProtocolViolation):
        talk.received(seq + 1, m.Pong(nonce=1))


@pytest.mark.parametrize(
    "message",
    [
        m.Progress(job=2, phase="denoise", step=1, total=4),
        m.Generated(job=2, text_encode_s=0, denoise_s=0, decode_s=0),
        m.Failed(job=0, code="x", message="y"),
        m.Cancelled(job=2),
    ],
    ids=lambda message: message.type,
)
def test_message_about_another_job_is_a_violation(message):
    talk, seq = conversation_in(WorkerState.GENERATING)
    with pytest.raises(ProtocolViolation):
        talk.received(seq, message)


def test_progress_that_goes_back_or_beyond_its_total_is_a_violation():
    talk, seq = conversation_in(WorkerState.GENERATING)
    talk.received(seq, m.Progress(job=1, phase="denoise", step=2, total=4))
    for step, total in ((2, 4), (1, 4), (5, 4)):
        with pytest.raises(ProtocolViolation):
            talk.received(seq + 1, m.Progress(job=1, phase="denoise", step=step, total=total))


def progress(phase, step, total, job=1):
    return m.Progress(job=job, phase=phase, step=step, total=total)


@pytest.mark.parametrize(
    "steps",
    [
        [progress("denoise", 1, 1), progress("text_encode", 1, 1)],
        [progress("decode", 1, 2), progress("denoise", 2, 2)],
        [progress("load", 1, 1)],
        [progress("denoise", 1, MAX_STEPS_OF_PHASE + 1)],
        [progress("denoise", 0, 0)],
    ],
    ids=["back to encoding", "back to denoising", "load while generating", "too many steps", "no step"],
)
def test_progress_has_an_end(steps):
    talk, seq = conversation_in(WorkerState.GENERATING)
    for offset, message in enumerate(steps[:-1]):
        talk.received(seq + offset, message)
    with pytest.raises(ProtocolViolation):
        talk.received(seq + len(steps) - 1, steps[-1])


def test_progress_of_a_generation_is_not_permitted_while_loading():
    talk, seq = conversation_in(WorkerState.LOADING)
    with pytest.raises(ProtocolViolation):
        talk.received(seq, progress("denoise", 1, 1, job=0))


def test_worker_that_never_answers_a_ping_is_a_violation_before_the_pings_fill_memory():
    talk, _ = conversation_in(WorkerState.GENERATING)
    with pytest.raises(ProtocolViolation, match="has not answered"):
        for nonce in range(MAX_UNANSWERED_PINGS + 1):
            talk.sending(m.Ping(nonce=nonce))


@pytest.mark.parametrize("tensors", [0, 400])
def test_listing_tensors_has_an_end(tensors):
    talk, seq = conversation_in(WorkerState.OPENING)
    message = m.TensorsListed(file=0, tensors=LISTED.tensors * tensors)
    with pytest.raises(ProtocolViolation, match="listed more than"):
        for offset in range(MAX_TENSORS // max(1, tensors) + 1):
            talk.received(seq + offset, message)


def test_tensors_sent_for_another_job_are_a_violation():
    talk, seq = conversation_in(WorkerState.SENDING)
    with pytest.raises(ProtocolViolation, match="job 2"):
        talk.received(seq, m.TensorsSent(job=2))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from(SAMPLES_FROM_WORKER)), max_size=12))
def test_any_sequence_of_messages_moves_through_the_table_or_is_a_violation(script):
    talk = Conversation()
    for seq, message in script:
        before = talk.state
        try:
            talk.received(seq, message)
        except ProtocolViolation:
            return
        assert talk.state == RECEIVE[before][type(message)]
