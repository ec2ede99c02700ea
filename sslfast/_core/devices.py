"""Whether the kernels of a GPU are played where there is none: settings of the whole process."""

from __future__ import annotations

import os

# Triton's interpreter runs them on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Their launches are collected instead of started, see `sslfast.triton._launch.recording`.
recording = False
