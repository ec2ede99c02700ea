"""What every loss that is a module has."""

from __future__ import annotations

import inspect

from torch import nn


class Objective(nn.Module):
    """A module that keeps its constructor's arguments as attributes, and prints them."""

    def extra_repr(self) -> str:
        names = inspect.signature(type(self)).parameters
        options = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return ", ".join(
            f"{name}={value!r}" if isinstance(value, str) else f"{name}={value}"
            for name, value in options.items()
        )
