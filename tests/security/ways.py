"""Every way by which a repository gets code run by the installed diffusers and transformers, each as a real folder.

A canary is code that makes the file named by WAN_TEST_CANARY and ends its process; nothing of ours sets that variable, so
that it does nothing in a worker. `call` is what a program without our gate would do with the folder, and `libraries` whether the canary then
sings: `unasked`, only with an argument that `trust` sets, or for which reason it cannot be tried here.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tests.assets.community import COMMUNITY, edit_json, write
from tests.assets.tiny_wan import tiny_model

SING = "open(os.environ['WAN_TEST_CANARY'], 'w').close(), os._exit(0)"
CANARY = f"import os\nif os.environ.get('WAN_TEST_CANARY'): {SING}\n"
ELSEWHERE = "someone/another-repository"

Libraries = Literal[
    "unasked", "with trust_remote_code", "with weights_only", "with allow_pickle", "applied", "no", "needs the network"
]


@dataclasses.dataclass(frozen=True)
class Way:
    """One way: how its folder differs from a plain tiny model, which files of it are the danger, what to call.

    `call` is Python for tests/programs/library_canaries.py, with `folder` and `trust` as names; empty where the
    libraries cannot be tried without a network.
    """

    name: str
    title: str
    build: Callable[[Path], None]
    danger: tuple[str, ...]
    libraries: Libraries
    call: str = ""
    # Whether approved code runs in trust mode. What does not is refused there too, or not shown.
    runs_when_approved: bool = False
    # What is said where a model runs without it.
    harmless: str = "runs without it, never shown"


def folder_of(way: Way, place: Path) -> Path:
    """Write the repository of a way into `place`, which is created."""
    shutil.copytree(tiny_model("t2v"), place)
    way.build(place)
    return place


def _community(kind: str, *code: str) -> Callable[[Path], None]:
    def build(model: Path) -> None:
        COMMUNITY[kind](model)
        for path in code:
            write(model, path, CANARY + (model / path).read_text())

    return build


def _file(path: str, content: str | bytes = CANARY) -> Callable[[Path], None]:
    def build(model: Path) -> None:
        (model / path).write_bytes(content.encode() if isinstance(content, str) else content)

    return build


def _key(path: str, **values: Any) -> Callable[[Path], None]:
    return lambda model: edit_json(model, path, **values)


def _with(*builders: Callable[[Path], None]) -> Callable[[Path], None]:
    def build(model: Path) -> None:
        for builder in builders:
            builder(model)

    return build


class _Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (CANARY,)


def pickled() -> bytes:
    """Return a pickle that is a canary."""
    return pickle.dumps(_Canary(), protocol=2)


def archive(inner: str) -> bytes:
    """Return a zip as torch makes them, with the canary as its pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(inner, pickled())
        file.writestr(f"{inner.partition('/')[0]}/version", "3\n")
    return content.getvalue()


def object_array() -> bytes:
    """Return a .npy file whose only element is the canary's pickle."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + pickled()


def _only_pickled(model: Path) -> None:
    (model / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    (model / "transformer" / "diffusion_pytorch_model.bin").write_bytes(archive("archive/data.pkl"))


def _library_on_path(model: Path) -> None:
    edit_json(model, "model_index.json", transformer=["canary_library", "WanTransformer3DModel"])


def _modular_elsewhere(model: Path) -> None:
    COMMUNITY["blocks"](model)
    index = json.loads((model / "modular_model_index.json").read_text())
    reference = {"pretrained_model_name_or_path": ELSEWHERE, "subfolder": "transformer"}
    edit_json(model, "modular_model_index.json", transformer=[*index["transformer"][:2], reference])


PIPELINE = "import diffusers; diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=trust)"
LONE = (
    "import diffusers; diffusers.DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder,"
    " trust_remote_code=trust)"
)
DIFFUSERS_AUTO = (
    "import diffusers; diffusers.AutoModel.from_pretrained(folder + '/transformer', trust_remote_code=trust)"
)
TRANSFORMERS_AUTO = (
    "import transformers; transformers.AutoModel.from_pretrained(folder + '/text_encoder', trust_remote_code=trust)"
)
TOKENIZER_AUTO = (
    "import transformers; transformers.AutoTokenizer.from_pretrained(folder + '/tokenizer', trust_remote_code=trust)"
)
BLOCKS = "import diffusers; diffusers.ModularPipelineBlocks.from_pretrained(folder, trust_remote_code=trust)"


def _torch_load(path: str) -> str:
    return f"import torch; torch.load(open(folder + '/{path}', 'rb'), weights_only=not trust)"


WAYS: tuple[Way, ...] = (
    Way("class_list", "`_class_name` is a list: a pipeline of the repository",
        _community("own_pipeline", "own_pipeline.py"), ("own_pipeline.py", "helpers/colours.py"),
        "with trust_remote_code", PIPELINE, runs_when_approved=True),
    Way("pipeline_py", "a class that diffusers does not have, and `pipeline.py`",
        _community("lone_pipeline", "pipeline.py"), ("pipeline.py",),
        "with trust_remote_code", LONE, runs_when_approved=True),
    Way("pipeline_py_beside", "`pipeline.py` beside a plain `WanPipeline` (`custom_pipeline` would take it)",
        _file("pipeline.py", CANARY + "from diffusers import WanPipeline\nclass Own(WanPipeline): pass\n"),
        ("pipeline.py",), "with trust_remote_code", LONE),
    Way("none_py", "`None.py`: what diffusers makes of `custom_pipeline=None`",
        _file("None.py", CANARY + "from diffusers import WanPipeline\nclass Own(WanPipeline): pass\n"),
        ("None.py",), "with trust_remote_code", PIPELINE),
    Way("custom_pipeline_key", "`custom_pipeline` in model_index.json",
        _key("model_index.json", custom_pipeline=ELSEWHERE), ("model_index.json",), "no", PIPELINE),
    Way("component_module", "a component whose library is a module in its folder",
        _community("own_transformer", "transformer/own_transformer.py"), ("transformer/own_transformer.py",),
        "with trust_remote_code", PIPELINE, runs_when_approved=True),
    Way("scheduler_module", "a scheduler from a module in its folder",
        _community("own_scheduler", "scheduler/own_scheduler.py"), ("scheduler/own_scheduler.py",),
        "with trust_remote_code", PIPELINE, runs_when_approved=True),
    Way("auto_map_diffusers", "`auto_map` in a diffusers configuration",
        _community("auto_map", "transformer/own_transformer.py"), ("transformer/own_transformer.py",),
        "with trust_remote_code", DIFFUSERS_AUTO, runs_when_approved=True),
    Way("auto_map_transformers", "`auto_map` in a transformers configuration",
        _community("own_text_encoder", "text_encoder/own_text_encoder.py"), ("text_encoder/own_text_encoder.py",),
        "with trust_remote_code", TRANSFORMERS_AUTO, runs_when_approved=True),
    Way("auto_map_tokenizer", "`auto_map` in tokenizer_config.json",
        _community("own_tokenizer", "tokenizer/own_tokenizer.py"), ("tokenizer/own_tokenizer.py",),
        "with trust_remote_code", TOKENIZER_AUTO, runs_when_approved=True),
    Way("auto_map_elsewhere", "`auto_map` into another repository",
        _key("transformer/config.json", auto_map={"AutoModel": f"{ELSEWHERE}--own.Own"}),
        ("transformer/config.json",), "needs the network"),
    Way("modular_blocks", "modular blocks",
        _community("blocks", "own_blocks.py"), ("own_blocks.py", "helpers/colours.py"),
        "with trust_remote_code", BLOCKS, runs_when_approved=True),
    Way("modular_elsewhere", "a modular index that takes a component from another repository",
        _modular_elsewhere, ("modular_model_index.json",), "needs the network"),
    Way("own_trust", "a configuration's own `trust_remote_code`",
        _with(_community("own_text_encoder", "text_encoder/own_text_encoder.py"),
              _key("text_encoder/config.json", trust_remote_code=True)),
        ("text_encoder/own_text_encoder.py",), "with trust_remote_code", TRANSFORMERS_AUTO),
    Way("kernel", "a kernel named in a configuration (`_attn_implementation_internal`)",
        _key("text_encoder/config.json", _attn_implementation_internal=f"{ELSEWHERE}:attend"),
        ("text_encoder/config.json",), "needs the network"),
    Way("hub_kernels", "`hub_kernels`, deep in a configuration",
        _key("transformer/config.json", extra={"deep": [{"hub_kernels": {"rms": ELSEWHERE}}]}),
        ("transformer/config.json",), "needs the network"),
    Way("library_on_path", "a component whose library is whatever can be imported by that name",
        _library_on_path, ("model_index.json",), "no", PIPELINE),
    Way("module_on_path", "`ftfy.py` in the folder, for a program that is started there",
        _file("ftfy.py"), ("ftfy.py",), "unasked", "sys.modules.pop('ftfy', None); sys.path.insert(0, folder); import ftfy"),
    Way("chat_template", "a chat template, in a file and in tokenizer_config.json",
        _with(_file("tokenizer/chat_template.jinja", "{{ raise_exception('canary') }}"),
              _key("tokenizer/tokenizer_config.json", chat_template="{{ raise_exception('canary') }}")),
        ("tokenizer/chat_template.jinja",), "applied",
        "import transformers\n"
        "tokenizer = transformers.AutoTokenizer.from_pretrained(folder + '/tokenizer')\n"
        "try: trust and tokenizer.apply_chat_template([{'role': 'user', 'content': 'x'}])\n"
        f"except Exception as error: 'canary' in str(error) and ({SING})",
        harmless="runs; the file is never shown, the key never rendered"),
    Way("pickled_weights", "weights that are a pickle",
        _only_pickled, ("transformer/diffusion_pytorch_model.bin",), "with weights_only",
        _torch_load("transformer/diffusion_pytorch_model.bin")),
    Way("pickle_as_safetensors", "a pickle called `.safetensors`",
        _file("transformer/diffusion_pytorch_model.safetensors", pickled()),
        ("transformer/diffusion_pytorch_model.safetensors",), "with weights_only",
        _torch_load("transformer/diffusion_pytorch_model.safetensors")),
    Way("pickle_as_tokenizer", "a pickle called `spiece.model`",
        _file("tokenizer/spiece.model", pickled()), ("tokenizer/spiece.model",), "with weights_only",
        _torch_load("tokenizer/spiece.model")),
    Way("pickle_beside", "pickles beside the weights, under any name",
        _with(_file("transformer/extra.bin", archive("archive/data.pkl")), _file("notes.md", pickled()),
              _file("vae/optimizer.pt", pickled())),
        ("transformer/extra.bin", "notes.md", "vae/optimizer.pt"), "with weights_only", _torch_load("notes.md")),
    Way("exported_program", "an exported program (`.pt2`)",
        _file("transformer/model.pt2", archive("archive/data.pkl")), ("transformer/model.pt2",), "with weights_only",
        _torch_load("transformer/model.pt2")),
    Way("object_array", "a numpy array of objects",
        _file("latents.npy", object_array()), ("latents.npy",), "with allow_pickle",
        "import numpy; numpy.load(folder + '/latents.npy', allow_pickle=trust)"),
    Way("compiled", "compiled Python and a native extension",
        _with(_file("pipeline.pyc", b"\0"), _file("transformer/ext.so", b"\x7fELF")),
        ("pipeline.pyc", "transformer/ext.so"), "no"),
)  # fmt: skip
