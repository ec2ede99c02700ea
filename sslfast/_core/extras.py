"""Optional packages: imported where used, named with their install line where absent."""

from __future__ import annotations

import importlib
from typing import Any

_PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn"}


def require(module: str, purpose: str) -> Any:
    """Import ``module`` or raise an ImportError that says what needs it and how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        package = _PACKAGES.get(top, top)
        raise ImportError(
            f"{purpose} needs {package}, which cannot be imported ({error}): "
            f"pip install 'sslfast[pretrain]' or pip install {package}"
        ) from error
