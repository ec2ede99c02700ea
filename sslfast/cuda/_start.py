"""How every CUDA C++ kernel is started, be it prebuilt or compiled on first use."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sslfast import _library, _nvrtc

Argument = Tensor | int | float


def start(
    source: str,
    kernel: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: Sequence[Argument],
    build: str,
    *,
    shared: int = 0,
    defines: _nvrtc.Defines = (),
) -> None:
    """Start a kernel by its name; arguments as of `sslfast._nvrtc.launch`.

    Args:
        source: the primitive whose source has the kernel, see `sslfast._nvrtc.sources`.
        build: variant of the ``cuda`` backend. ``"prebuilt"`` starts the library's kernel or
            fails, ``"nvrtc"`` one that is compiled, and ``""`` the library's where it has it.
    """
    listed = build == "prebuilt" or (
        _library.runs_prebuilt(build) and _library.cuda_kernel(kernel) is not None
    )
    if listed:
        _library.launch(kernel, grid, block, arguments, shared=shared)
    else:
        _nvrtc.launch(source, kernel, grid, block, arguments, shared=shared, defines=defines)
