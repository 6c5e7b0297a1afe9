"""Memory of each primitive of steepest, and the time it takes to import the library: a part of docs/speed.md.

python benchmarks/footprint.py             # a minute
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import speed_page
from harness import arguments, load, save
from peers import steepest
from problems import cells

SIZES = {(64, 32), (64, 100, 10), (1, 1000, 50)}
ROUNDS = 9


def memory() -> dict[str, dict[str, float]]:
    """For each cell: the bytes that torch's allocator has given out at the worst moment of the call, results among
    them, over the bytes of arguments and results. What LAPACK allocates by itself is not counted."""
    library = steepest()
    found = {}
    for cell in cells():
        if cell.size not in SIZES:
            continue
        call = library(cell)["steepest"]().call
        result = call()  # once before: what is cached at the first call is not the call's
        size = sum(t.numel() * t.element_size() for t in (*call.args, result))
        found[str(cell)] = {"ratio": float(f"{_peak(call) / size:.3g}")}
    return found


def _peak(call: Callable[[], Any]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is talkative
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    peak = now = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


def imports(rounds: int) -> dict[str, float]:
    """Seconds of `import torch` and of `import steepest`, torch among it, in new processes, in turn; medians."""
    samples: dict[str, list[float]] = {"torch": [], "steepest": []}
    for _ in range(rounds):
        for name, times in samples.items():
            code = f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
            times.append(float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))
    return {name: round(statistics.median(times), 3) for name, times in samples.items()}


def main() -> None:
    options = arguments(__doc__ or "")
    data = load(options.output) | {"memory": memory(), "import": {"seconds": imports(ROUNDS)}}
    save(options.output, data)
    speed_page.write(options.output)


if __name__ == "__main__":
    main()
