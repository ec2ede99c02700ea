"""Methods, the training loop and the pretraining job behind ``sslfast pretrain``."""

from __future__ import annotations

from sslfast.pretrain.config import Config
from sslfast.pretrain.loop import Run, StopRequest, train
from sslfast.pretrain.methods import SimCLR, build_method

__all__ = ["Config", "Run", "SimCLR", "StopRequest", "build_method", "train"]
