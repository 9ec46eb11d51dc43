"""Refusals of the kernel become errors that name the layer and a remedy."""

from __future__ import annotations

import errno
import os

import pytest

from wan_compat.protocol.errors import SandboxEntryFailed
from wan_compat.sandbox import failure
from wan_compat.sandbox.failure import entering, remedy
from wan_compat.sandbox.spec import Layer


@pytest.mark.parametrize("layer", list(Layer))
def test_every_layer_has_a_remedy(layer: Layer) -> None:
    for number in (errno.EPERM, errno.ENOSPC, errno.EOPNOTSUPP, None):
        assert remedy(layer, number)


def test_errno_and_layer_are_kept() -> None:
    with pytest.raises(SandboxEntryFailed, match="doing it failed") as caught, entering(Layer.VIEW, "doing it"):
        raise OSError(errno.EPERM, "no")
    assert caught.value.details == {"layer": "view", "errno": errno.EPERM}
    assert isinstance(caught.value.__cause__, OSError)


def test_inner_error_is_not_wrapped_again() -> None:
    inner = failure.failed(Layer.SECCOMP, "inner", "hint")
    with pytest.raises(SandboxEntryFailed) as caught, entering(Layer.VIEW, "outer"):
        raise inner
    assert caught.value is inner


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"user/max_user_namespaces": "0"}, "max_user_namespaces"),
        ({"kernel/unprivileged_userns_clone": "0"}, "unprivileged_userns_clone"),
        ({"kernel/apparmor_restrict_unprivileged_userns": "1"}, "AppArmor"),
        ({}, "container"),
    ],
)
def test_refused_user_namespaces_are_explained(
    settings: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(failure, "_setting", settings.get)
    assert said in remedy(Layer.USER_NAMESPACE, errno.EPERM)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
        ("kernel/unprivileged_userns_clone", "0"),
        ("user/max_user_namespaces", "0"),
    ],
)
def test_settings_can_make_namespaces_doubtful_for_ordinary_users(
    setting: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {setting: value}
    monkeypatch.setattr(failure, "_setting", settings.get)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert failure.namespaces_are_doubtful()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not failure.namespaces_are_doubtful()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    settings[setting] = {"1": "0", "0": "1"}[value]
    assert not failure.namespaces_are_doubtful()


def test_bubblewrap_that_apparmor_refuses_needs_a_profile_and_any_other_an_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"kernel/apparmor_restrict_unprivileged_userns": "1"}
    monkeypatch.setattr(failure, "_setting", settings.get)
    assert "bwrap-userns-restrict" in failure.bwrap_remedy()
    settings.clear()
    assert "reinstall" in failure.bwrap_remedy()
