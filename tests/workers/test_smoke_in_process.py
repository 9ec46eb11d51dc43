"""SmokeTestRunner on pipelines that are loaded in the process that calls: diffusers' own, and a WanPipelineWrapper."""

from __future__ import annotations

from tests.assets.tiny_wan import tiny_model
from tests.workers.inside import in_torch_process


@in_torch_process
def test_a_plain_pipeline_and_a_wrapper_pass_and_nan_weights_do_not() -> None:
    import diffusers
    import torch

    from wan_compat.supervisor.smoke_test import SmokeTestRunner
    from wan_compat.workers.pipeline_loader import WanPipelineLoader

    runner = SmokeTestRunner(parameters={"max_sequence_length": 16})
    plain = diffusers.WanPipeline.from_pretrained(tiny_model("t2v"))
    plain.set_progress_bar_config(disable=True)
    wrapper = WanPipelineLoader().load_wan_pipeline(str(tiny_model("t2v")))
    for pipeline in (plain, wrapper):
        found = runner.examine(pipeline, runs=2)
        assert found.smoke.success, found.smoke
        assert found.smoke.output_shape == (5, 64, 96, 3) and found.smoke.memory_peak > 100 << 20
        assert found.performance is not None and found.performance.seconds_per_step > 0
    memory = runner.test_memory_usage(plain, runs=4)
    assert not memory.leaks and len(memory.samples) == 4, memory
    with torch.no_grad():
        plain.vae.decoder.conv_out.bias.fill_(float("nan"))
        wrapper.pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
    for pipeline in (plain, wrapper):
        result = runner.run_pipeline_smoke_test(pipeline)
        assert not result.success and "NaN" in result.errors[0], result
