"""In a notebook: cells of a real Jupyter kernel, whose event loop runs all the time, use both forms of the interface."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from tests.assets.tiny_wan import tiny_model
from tests.supervisor.conftest import PROGRAMS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(jupyter_client|zmq|tornado|traitlets)")

START_S = 60.0


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Return a function that runs a cell and returns what it printed; fails with the cell's error."""
    folder = tmp_path_factory.mktemp("notebook")
    manager = KernelManager(
        connection_file=str(folder / "connection.json"), transport="ipc", ip=str(folder / "k"), kernel_name="python3"
    )
    assert manager.kernel_spec is not None
    manager.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager.start_kernel(cwd=str(folder), env={**os.environ, "IPYTHONDIR": str(folder / "ipython")})
    client: BlockingKernelClient = manager.blocking_client()
    client.start_channels()

    def run(code: str) -> str:
        printed: list[str] = []

        def hear(message: dict) -> None:
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                printed.append(message["content"]["text"])

        reply = client.execute_interactive(code, timeout=START_S, output_hook=hear, store_history=False)
        assert reply["content"]["status"] == "ok", "\n".join(reply["content"].get("traceback", ["?"]))
        return "".join(printed)

    try:
        client.wait_for_ready(timeout=START_S)
        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
        manager.cleanup_resources()


SET_UP = f"""
import pathlib, time
from wan_compat import AsyncSupervisor, GenerationRequest, Supervisor
from wan_compat.supervisor import events as ev
program = {(str(PROGRAMS / "misbehaving_zygote.py"), "slow")!r}
request = GenerationRequest(
    model={str(tiny_model("t2v"))!r}, prompt="a red ball", height=64, width=96, num_frames=9,
    num_inference_steps=5, seed=1,
)
"""


def test_cells_await_and_block_as_scripts_do(cell):
    assert cell(SET_UP) == ""
    # A cell of its own for each step, as people write them: objects outlive their cell, and so does the loop.
    cell("supervisor = AsyncSupervisor(); supervisor._supervisor._zygote_program = program")
    cell("job = await supervisor.submit(request)")
    steps = cell(
        "async for event in job.events():\n"
        "    if isinstance(event, ev.Progress) and event.phase == 'denoise': print(event.step, end=' ')"
    )
    assert steps == "1 2 3 4 5 "
    assert cell("print((await job.result()).frames.frames.shape)") == "(9, 64, 96, 3)\n"
    # The blocking form, in a thread that has a running loop.
    assert cell("print(supervisor._supervisor.generate(request).success)") == "True\n"
    # Interrupted, a cell leaves the job; the next one can still stop it.
    cell("job = await supervisor.submit(request.model_copy(update={'num_inference_steps': 900}))")
    cell(
        "try: await job.result(timeout=0.05)\n"
        "except Exception as error: print(type(error).__name__)\n"
        "await job.cancel()"
    )
    assert cell("try: await job.result(timeout=20)\nexcept Exception as error: print(error.code)") == "job_cancelled\n"
    began = time.monotonic()
    assert cell("await supervisor.close()\nprint('closed')") == "closed\n"
    assert time.monotonic() - began < 20
