"""What Triton's interpreter needs in order to run here."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def repair() -> None:
    """Let run-time values bound loops: ``range(0, dim, BLOCK)``.

    Triton 3.6 to 3.8 keep a scalar as an array of one element and read it back with
    ``int(array)``, which NumPy 2.4 refuses.
    """
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_lang_tensor
