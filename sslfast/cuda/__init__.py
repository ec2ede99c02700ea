"""Launchers of the CUDA C++ kernels, each in the place that its source has in ``csrc/cuda``.

Each runs its kernels from the library that was built with the package ("prebuilt"), or compiles
the same source on first use ("nvrtc"). Modules are imported by their first call.
"""

from __future__ import annotations

from importlib import import_module

from sslfast import _nvrtc


def specialisations(name: str) -> tuple[_nvrtc.Defines, ...]:
    """The macros that stand for all with which a primitive's source is compiled.

    A launcher whose source leaves something open names them in ``SPECIALISATIONS``; tests and
    ``sslfast resources`` compile them.
    """
    place = _nvrtc.sources()[name].relative_to(_nvrtc.source_root() / "cuda").with_suffix("")
    launcher = import_module(".".join(("sslfast.cuda", *place.parts)))
    return getattr(launcher, "SPECIALISATIONS", ((),))
