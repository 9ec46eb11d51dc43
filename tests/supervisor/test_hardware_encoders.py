"""Encoders in hardware: tried for real in the confinement that has no devices, told, and never offered."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from wan_compat.policies.encoding import CODECS, FORMATS, HARDWARE_ENCODERS, plan_encoding
from wan_compat.protocol.errors import InvalidRequest
from wan_compat.protocol.video import VideoOptions
from wan_compat.supervisor import doctor
from wan_compat.supervisor.ffmpeg import find_ffmpeg
from wan_compat.supervisor.hardware_encoders import try_encoder, try_hardware_encoders


def test_each_encoder_in_hardware_that_is_compiled_in_was_tried_and_says_why_not():
    ffmpeg = find_ffmpeg()
    tried = try_hardware_encoders(ffmpeg)
    assert set(tried) == set(HARDWARE_ENCODERS) & ffmpeg.encoders
    assert all(tried.values())  # also on a machine that has the hardware: the confinement has no devices
    assert not any("0x" in reason or len(reason) > 200 for reason in tried.values())


def test_the_trial_tells_an_encoder_that_works():
    """What the refusals are worth: the same trial of an encoder that needs no device succeeds."""
    assert try_encoder(find_ffmpeg(), "libx264") == ""


def test_a_program_that_only_claims_to_be_ffmpeg_encodes_nothing():
    lies = dataclasses.replace(find_ffmpeg(), path=shutil.which("false") or "", encoders=frozenset({"h264_nvenc"}))
    assert try_hardware_encoders(lies) == {"h264_nvenc": "ended with status 1"}


@pytest.mark.parametrize("name", HARDWARE_ENCODERS)
def test_one_is_refused_with_the_codec_that_does_the_same(name):
    software = HARDWARE_ENCODERS[name]
    with pytest.raises(InvalidRequest, match="without devices") as caught:
        plan_encoding(832, 480, 16, ".mp4", VideoOptions(codec=name))
    assert f"--codec {software};" in caught.value.hint
    assert plan_encoding(832, 480, 16, ".mp4", VideoOptions(codec=software)).codec in FORMATS["mp4"].codecs
    assert name not in CODECS


def test_doctor_tells_what_each_answered():
    found = doctor._examine_ffmpeg()
    assert found["hardware"] == try_hardware_encoders(find_ffmpeg())
    assert not set(found["encoders"]) & set(HARDWARE_ENCODERS)
