"""What the supervisor's memory does while a long video is written: flat in the number of frames.

    ours        peak of a process that delivers 1000 frames of 320x192 to an mp4, over its peak for 50
    reference   none: the bar is absolute. All 1000 frames are 184 MB

The copy of the frames that is kept while the encoder works lies on disk.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator

from benchmarks.child import run_python
from benchmarks.harness import Benchmark, Row, Samples, at_most

_CODE = """
import json, re
from wan_compat.protocol.values import FrameSpec
from wan_compat.supervisor.encode_file import encode_file

def peak(count):
    open('/proc/self/clear_refs', 'w').write('5')
    spec = FrameSpec(width=320, height=192, num_frames=count)
    frame = bytearray(range(256)) * (spec.frame_bytes // 256)
    encode_file((memoryview(frame) for _ in range(count)), spec, 16, f'{folder}/{{count}}.mp4')
    return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024

few = peak(50)
print(json.dumps(max(0.0, peak(1000) - few)))
"""


def run(_shared: object) -> Iterator[Row]:
    grown = []
    for _ in range(3):
        with tempfile.TemporaryDirectory(prefix="wan-compat-encode-") as folder:
            _, printed = run_python(_CODE.replace("{folder}", folder).replace("{{count}}", "{count}"))
        grown.append(float(json.loads(printed)))
    yield Row("encode_memory", Samples(tuple(grown)), "MB", at_most(4))


BENCHMARK = Benchmark("encode_memory", "memory of writing 1000 frames over that of 50; absolute", run)
