"""The oneDNN seam: nearly the same values, on the instances it was put on, and only for what it is for."""

from __future__ import annotations

import pytest

from tests.workers.inside import in_torch_process
from tests.workers.test_streaming import latents, vae


@pytest.mark.long
@in_torch_process
def test_a_decode_through_onednn_differs_by_rounding_only() -> None:
    import torch

    from wan_compat.workers.conv import send_conv3d_to_onednn

    model = vae()
    z = latents(model)
    with torch.no_grad():
        before = model.decode(z).sample
        assert send_conv3d_to_onednn(model) > 10
        after = model.decode(z).sample
    assert 0 < (before - after).abs().max() < 1e-4


@in_torch_process
def test_other_instances_keep_torch_s_own_convolution() -> None:
    import torch

    from wan_compat.workers.conv import send_conv3d_to_onednn

    send_conv3d_to_onednn(vae())
    assert torch.nn.Conv3d._conv_forward.__module__ == "torch.nn.modules.conv"
    assert "_conv_forward" not in vars(torch.nn.Conv3d(3, 3, 1))


@in_torch_process
def test_half_precision_is_left_alone_before_and_after() -> None:
    import torch

    from wan_compat.workers.conv import send_conv3d_to_onednn

    layer = torch.nn.Conv3d(4, 4, 3)
    assert send_conv3d_to_onednn(layer.to(torch.bfloat16)) == 0
    layer = torch.nn.Conv3d(4, 4, 3, stride=2, dilation=1, groups=2)
    value = torch.randn(1, 4, 5, 9, 9)
    with torch.no_grad():
        plain = layer(value)
        assert send_conv3d_to_onednn(layer) == 1
        assert torch.allclose(layer(value), plain, atol=1e-5)
        layer.to(torch.bfloat16)  # cast after the seam was put in
        assert layer(value.bfloat16()).dtype == torch.bfloat16
