"""What the installed libraries do with folders when nobody stands before them: `library_canaries.py ORDERS`.

ORDERS is a JSON list of {"call", "folder", "trust", "canary"}. Each is run in a fork, without any sandbox, and the
answers are printed as a JSON list of whether the canary sang. The canaries are ours; they make one empty file.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

import diffusers
import torch
import transformers

torch.set_num_threads(1)
# They load their parts when asked; asked once here, and not again in every fork.
for name in ("AutoModel", "DiffusionPipeline", "WanPipeline", "UniPCMultistepScheduler", "modular_pipelines"):
    getattr(diffusers, name)
for name in ("AutoModel", "AutoTokenizer", "UMT5EncoderModel", "PreTrainedTokenizerFast"):
    getattr(transformers, name)
for module in (diffusers, transformers):
    module.utils.logging.set_verbosity_error()


def run(order: dict[str, object], path: str) -> None:
    os.environ["WAN_TEST_CANARY"] = str(order["canary"])
    sys.path.append(path)
    try:
        exec(str(order["call"]), {"folder": order["folder"], "trust": order["trust"], "os": os, "sys": sys})
    except BaseException as error:  # whatever it is: asked is whether the canary sang
        print(f"{order['call']}: {type(error).__name__}: {error}"[:300], file=sys.stderr)


def main() -> None:
    answers = []
    with tempfile.TemporaryDirectory() as path:
        with open(os.path.join(path, "canary_library.py"), "w") as file:
            file.write("import os\nopen(os.environ['WAN_TEST_CANARY'], 'w').close()\n")
        for order in json.loads(sys.argv[1]):
            if (child := os.fork()) == 0:
                run(order, path)
                os._exit(0)
            os.waitpid(child, 0)
            answers.append(os.path.exists(str(order["canary"])))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
