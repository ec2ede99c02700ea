"""Peak memory of a piece of work on the CPU, measured in a process of its own.

`peak_memory` measures in this process and is right only where nothing large was freed before;
`peak_memory_of` starts a fresh process for it. ``python -m sslfast._memory REQUEST`` is that
process.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
# One heap, and every large block handed back when freed: memory freed before the measurement
# must not hide memory taken during it.
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}


def peak_memory(run: Callable[[], object], *, warm_up: Callable[[], object]) -> int:
    """Peak resident bytes of one call above those before it.

    Args:
        run: the work; what it allocates counts, results included, what exists before does not.
        warm_up: the same work at a tiny size (in every dimension), called first, so that
            libraries, thread pools and compiled code are not counted.

    Raises:
        RuntimeError: this system has no ``/proc/self/clear_refs``.
    """
    if not _CLEAR_REFS.exists():
        raise RuntimeError(f"peak memory needs {_CLEAR_REFS}, which only Linux has")
    warm_up()
    gc.collect()
    _CLEAR_REFS.write_text(_RESET_PEAK)
    before = _status_bytes("VmRSS")
    result = run()
    peak = _status_bytes("VmHWM") - before
    del result
    return max(peak, 0)


def peak_memory_of(
    target: str,
    sizes: Mapping[str, Any],
    *,
    warm_up: Mapping[str, Any],
    threads: int = 1,
    path: Path | None = None,
) -> int:
    """`peak_memory` in a fresh process.

    Args:
        target: ``"module:function"``; the function makes the inputs and returns the work as a
            function without arguments.
        sizes: keyword arguments of the function, as JSON can carry them.
        warm_up: those of the tiny call before.
        threads: of torch.
        path: directory to find the module in, besides the usual ones.

    Raises:
        RuntimeError: the process failed; with the end of its error output.
    """
    request = {"target": target, "sizes": dict(sizes), "warm_up": dict(warm_up), "threads": threads}
    root = str(Path(__file__).parents[1])
    paths = [root, *([str(path)] if path else []), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "sslfast._memory", json.dumps(request)],
        env={**os.environ, **_ALLOCATOR, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"measuring {target} at {dict(sizes)} failed: {done.stderr[-2000:]}")
    return int(done.stdout.splitlines()[-1])


def main(argv: Sequence[str]) -> None:
    request = json.loads(argv[0])
    torch.set_num_threads(request["threads"])
    module, _, name = request["target"].partition(":")
    prepare = getattr(importlib.import_module(module), name)
    warm_up, run = prepare(**request["warm_up"]), prepare(**request["sizes"])
    print(peak_memory(run, warm_up=warm_up))


def _status_bytes(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {key}")


if __name__ == "__main__":
    main(sys.argv[1:])
