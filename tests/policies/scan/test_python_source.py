"""Python is read by its syntax tree: what it would do is named with its line, and hostile text stops nobody."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_compat.policies.scan.python_source import MAX_PER_RULE, MAX_SOURCE_BYTES, parse, read_python
from wan_compat.policies.scan.restricted import read_restricted
from wan_compat.policies.scan.rules import RULES


def found(source, name="pipeline.py"):
    return {
        (item.rule, item.line) for item in read_python(source.encode() if isinstance(source, str) else source, name)
    }


def rules(source, name="pipeline.py"):
    return {rule for rule, _ in found(source, name)}


CASES = {
    "import os\nos.system('id')": ("python-process", 2),
    "from os import system as s\ns('id')": ("python-process", 2),
    "import os as o\no.popen('id')": ("python-process", 2),
    "import os\nrun = os.system\nrun('id')": ("python-process", 3),
    "import subprocess": ("python-process", 1),
    "import subprocess as sp\nsp.run('id', shell=True)": ("python-process", 2),
    "exec('1')": ("python-exec", 1),
    "e = eval\ne('1')": ("python-exec", 2),
    "import builtins\nbuiltins.exec('1')": ("python-exec", 2),
    "map(exec, lines)": ("python-exec", 1),
    "__import__('o' + 's')": ("python-dynamic-import", 1),
    "import importlib\nimportlib.import_module(x)": ("python-dynamic-import", 1),
    "import sys\nsys.modules['os']": ("python-dynamic-import", 2),
    "().__class__.__base__.__subclasses__()": ("python-dunder-walk", 1),
    "getattr(x, '__globals__')": ("python-dunder-walk", 1),
    "getattr(x, 'sys' + 'tem')": ("python-computed-attribute", 1),
    "import socket": ("python-network", 1),
    "from urllib.request import urlopen": ("python-network", 1),
    "import requests": ("python-network", 1),
    "from huggingface_hub import hf_hub_download": ("python-download", 1),
    "import torch\ntorch.hub.load('a/b', 'c')": ("python-download", 2),
    "open('x', 'w')": ("python-file-write", 1),
    "open('x', mode=m)": ("python-file-write", 1),
    "p.write_text('x')": ("python-file-write", 1),
    "import shutil\nshutil.rmtree('x')": ("python-file-write", 2),
    "import ctypes": ("python-native", 1),
    "import torch\ntorch.ops.load_library('x.so')": ("python-native", 2),
    "import pickle": ("python-unpickle", 1),
    "import torch\ntorch.load('x')": ("python-unpickle", 2),
    "import numpy as np\nnp.load('x', allow_pickle=True)": ("python-unpickle", 2),
    "import os\nos.environ['HF_TOKEN']": ("python-environment", 2),
    "x = '~/.ssh/id_rsa'": ("python-credentials", 1),
    "x = '/etc/passwd'": ("python-credentials", 1),
    "import base64\nbase64.b64decode(x)": ("python-obfuscation", 2),
    "''.join(chr(c) for c in numbers)": ("python-obfuscation", 1),
    "''.join(map(chr, numbers))": ("python-obfuscation", 1),
    f"x = '{base64.b64encode(bytes(range(256)) * 12).decode()}'": ("python-obfuscation", 1),
    "x = bytes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])": ("python-obfuscation", 1),
    "import atexit\natexit.register(f)": ("python-hook", 1),
    "import sys\nsys.settrace(f)": ("python-hook", 2),
    "class A:\n    def __reduce__(self): ...": ("python-hook", 2),
    "P.from_pretrained('x', trust_remote_code=True)": ("python-remote-code", 1),
    "P.from_pretrained('x', custom_pipeline='a/b')": ("python-remote-code", 1),
    "# coding: utf-7\nx = 1": ("python-encoding", 1),
    "x = 1\ny = '\u202e'": ("python-bidi", 2),
    "import pip": ("python-install", 1),
}


@pytest.mark.parametrize("source", CASES)
def test_what_it_would_do_is_named_with_its_line(source):
    assert CASES[source] in found(source)


PIPELINE = '''
from typing import Optional
import inspect, math, re
import torch
from diffusers import DiffusionPipeline, WanTransformer3DModel
from .blocks import Block

class Pipeline(DiffusionPipeline):
    """An ordinary pipeline; it evaluates nothing."""

    def __init__(self, transformer: WanTransformer3DModel, scheduler):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.pattern = re.compile("x+")
        self.transformer.eval()

    @torch.no_grad()
    def __call__(self, prompt: str, steps: int = 20, image: Optional[torch.Tensor] = None):
        latents = torch.randn(1, 16, 4, 8, 8)
        for t in self.scheduler.timesteps:
            latents = self.scheduler.step(self.transformer(latents, t).sample, t, latents).prev_sample
        return self.vae.decode(latents)
'''


def test_an_ordinary_pipeline_has_nothing_to_report():
    assert found(PIPELINE) == set()


@pytest.mark.parametrize("name", ["setup.py", "conftest.py", "sitecustomize.py", "None.py", "hubconf.py", "x.pth"])
def test_files_that_run_by_their_name_are_told(name):
    assert rules("x = 1", name) == {"code-runs-by-name"}


HOSTILE = {
    "unary": "-" * 200_000 + "1",
    "sum": "1" + "+1" * 200_000,
    "attributes": "a" + ".b" * 200_000,
    "calls": "a" + "()" * 100_000,
    "brackets": "(" * 100_000,
    "lambdas": "lambda:" * 50_000 + "1",
    "elif": "if x:\n pass\n" + "elif x:\n pass\n" * 50_000,
    "dotted import": "import a" + ".a" * 200_000,
    "dotted import on many lines": "import a" + ".\\\na" * 100_000,
    "dotted from": "from a" + ".a" * 200_000 + " import b",
    "dotted import behind another": "x = 1; import a" + ".a" * 200_000,
    "dotted import in a block": "if 1: import a" + ".a" * 200_000,
    "power": "a" + "**a" * 50_000,
    "digits": "x = " + "9" * 900_000,
    "null": "x = 1\0",
    "not text": b"\xff\xfe\x00",
    "syntax": "def (:",
    "large": "x = 1\n" * (MAX_SOURCE_BYTES // 6 + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_source_that_is_built_to_stop_readers_is_told_and_stops_none(name):
    started = time.process_time()
    assert "python-unreadable" in rules(HOSTILE[name])
    assert time.process_time() - started < 5


def test_one_thing_a_thousand_times_needs_no_thousand_lines():
    assert len(read_python(b"exec(x)\n" * 1000, "a.py")) == MAX_PER_RULE + 1


def test_every_rule_it_names_is_in_the_table():
    assert {rule for source in [*CASES, *HOSTILE.values()] for rule in rules(source)} <= set(RULES)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_is_read_to_an_end(source):
    rules(source)


def test_restricted_python_gives_advice_only():
    tree, _ = parse(PIPELINE.encode())
    assert tree is not None
    advice = read_restricted(tree)
    assert advice is not None and advice.rule == "python-restricted" and "outside" in advice.message
    tree, _ = parse(b"def f(x):\n    return x + 1\n")
    assert tree is not None
    advice = read_restricted(tree)
    assert advice is not None and "within" in advice.message and "not permission" in advice.message
    assert RULES["python-restricted"].level == "info"
