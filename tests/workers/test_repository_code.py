"""Importing approved code: under a name of its own, by relative imports, from sources alone, leaving nothing behind."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.workers.inside import in_torch_process

# Each runs in a fork of its own, since a process imports from one repository only.


def in_a_repository(test: Callable[[str], None]) -> Callable[..., None]:
    """Run the body of `test` in a fork of the torch process, with an empty folder of its own."""

    def body() -> None:
        with tempfile.TemporaryDirectory(prefix="wan-compat-code-") as place:
            test(place)

    functools.update_wrapper(body, test)
    return in_torch_process(body)


def write(folder: str, **files: str) -> None:
    for name, text in files.items():
        path = Path(folder) / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def load(place: str, module: str, class_name: str = "Own") -> Any:
    from wan_compat.protocol.values import CodeSpec
    from wan_compat.workers.repository_code import load_class

    return load_class(CodeSpec(module=module, class_name=class_name), place)


def refused(place: str, module: str, words: str) -> None:
    from wan_compat.protocol.errors import ModelNotCompatible

    try:
        load(place, module)
    except ModelNotCompatible as error:
        assert words in error.message, error.message
    else:
        raise AssertionError("it was loaded")


@in_a_repository
def test_relative_imports_reach_the_repository(place: str) -> None:
    write(
        place,
        own="from .lib.deep import VALUE\nfrom . import other\nclass Own: value = (VALUE, other.VALUE)\n",
        lib__deep="from ..other import VALUE as OTHER\nVALUE = OTHER + 1\n",
        other="VALUE = 1\n",
    )
    found = load(place, "own.py")
    assert found.value == (2, 1) and found.__module__ == "_wan_repository.own"


@in_a_repository
def test_absolute_imports_do_not(place: str) -> None:
    write(place, own="import other\nclass Own: pass\n", other="")
    refused(place, "own.py", "other")


@in_a_repository
def test_a_file_with_the_name_of_a_library_is_nobodys_library(place: str) -> None:
    write(
        place,
        own="import torch, json\nclass Own: files = (torch.__file__, json.__file__)\n",
        torch="1/0\n",
        json="1/0\n",
    )
    assert not any(file.startswith(place) for file in load(place, "own.py").files)
    assert place not in sys.path and not any(path.startswith(place) for path in sys.path)


@in_a_repository
def test_no_bytecode_is_written_or_read(place: str) -> None:
    import py_compile

    sys.dont_write_bytecode = False
    write(place, own="class Own: value = 'planted'\n")
    cached = py_compile.compile(os.path.join(place, "own.py"))
    assert cached is not None
    stamp = os.stat(os.path.join(place, "own.py"))
    Path(place, "own.py").write_text("class Own: value = 'source!'\n")
    os.utime(
        os.path.join(place, "own.py"), ns=(stamp.st_atime_ns, stamp.st_mtime_ns)
    )  # to Python, the bytecode is fresh
    Path(place, "lib").mkdir()
    Path(place, "lib", "x.py").write_text("class Own: pass\n")
    assert load(place, "own.py").value == "source!"
    load(place, "lib/x.py")
    assert not os.path.exists(os.path.join(place, "lib", "__pycache__"))


@in_a_repository
def test_the_init_of_the_models_own_folder_is_not_run_and_one_of_a_package_is(place: str) -> None:
    write(place, own="from .lib import VALUE\nclass Own: value = VALUE\n", lib__x="")
    Path(place, "lib", "__init__.py").write_text("VALUE = 5\n")
    Path(place, "__init__.py").write_text("1/0\n")
    assert load(place, "own.py").value == 5


@in_a_repository
def test_an_extension_module_and_bytecode_alone_are_not_found(place: str) -> None:
    import py_compile

    write(place, own="class Own: pass\n")
    Path(place, "lib").mkdir()
    py_compile.compile(os.path.join(place, "own.py"), cfile=os.path.join(place, "lib", "x.pyc"))
    for name in ("y.pyc", "y.so", "y.cpython-311-x86_64-linux-gnu.so"):
        Path(place, "lib", name).write_bytes(b"\0")
    for name in ("x", "y"):
        Path(place, "own.py").write_text(f"from .lib import {name}\nclass Own: pass\n")
        refused(place, "own.py", "cannot be imported")


@in_a_repository
def test_a_source_without_end_is_refused(place: str) -> None:
    from wan_compat.workers.repository_code import MAX_SOURCE_BYTES

    write(place, own="#" * (MAX_SOURCE_BYTES + 1))
    refused(place, "own.py", "MiB")


@in_a_repository
def test_what_has_the_name_must_be_a_class(place: str) -> None:
    write(place, own="Own = 5\n")
    refused(place, "own.py", "no class")


@in_a_repository
def test_a_component_must_be_what_its_library_loads(place: str) -> None:
    from wan_compat.protocol.errors import ModelNotCompatible
    from wan_compat.protocol.values import CodeSpec, ComponentSpec
    from wan_compat.workers.repository_code import load_own_class

    write(place, own="import torch\nclass Own(torch.nn.Module): pass\n")
    for library, dtype, base in (
        ("diffusers", "float32", "ModelMixin"),
        ("diffusers", None, "SchedulerMixin"),
        ("transformers", "float32", "PreTrainedModel"),
        ("transformers", None, "PreTrainedTokenizerBase"),
    ):
        spec = ComponentSpec(
            name="part",
            library=library,  # type: ignore[arg-type]
            class_name="Own",
            subfolder="part",
            dtype=dtype,  # type: ignore[arg-type]
            code=CodeSpec(module="own.py", class_name="Own"),
        )
        try:
            load_own_class(spec, place)
        except ModelNotCompatible as error:
            assert base in error.message
        else:
            raise AssertionError(base)
