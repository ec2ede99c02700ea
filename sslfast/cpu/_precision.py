"""How float32 operands multiply on processors whose matrix instructions take bfloat16."""

from __future__ import annotations

import torch

# By what torch calls it: `torch.set_float32_matmul_precision`, and mkldnn's fp32_precision.
TERMS = {"highest": 3, "high": 2, "medium": 1}
_SETTINGS = {"tf32": "high", "bf16": "medium"}


def float_terms() -> int:
    """Bfloat16 terms of a float32 operand: 3 holds it exactly, 2 sixteen bits of it, 1 eight.

    It follows what `torch` does with its own products on a CPU: ``torch.backends.mkldnn.matmul.
    fp32_precision``, which `torch.set_float32_matmul_precision` sets too ("high" to 2 terms,
    "medium" to 1). Without matrix instructions float32 products are of float32, whatever it says.
    """
    setting: str = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return TERMS[_SETTINGS.get(setting, "highest")]
