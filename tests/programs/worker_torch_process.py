"""Runs tests that need torch, each in a fork of a process that imported it once: the zygote's own way.

Reads "module:function" lines on stdin; answers each with one JSON line: the traceback, or null.
"""

import importlib
import json
import os
import sys
import traceback

from wan_compat.workers import libraries

libraries.import_libraries()
libraries.freeze()
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what a test prints must not look like an answer

for line in sys.stdin:
    module, _, function = line.strip().partition(":")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        failure = None
        try:
            getattr(importlib.import_module(module), function).inside()
        except BaseException:
            failure = traceback.format_exc()
        os.write(writer, json.dumps(failure).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read() or json.dumps("the process died").encode()
    os.waitpid(pid, 0)
    answers.write(answer.decode() + "\n")
