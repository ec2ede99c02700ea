"""Launchers of the CUDA C++ kernels, one file a primitive.

Each runs its kernels from the library that was built with the package ("prebuilt"), or compiles
the same source on first use ("nvrtc"). Modules are imported by their first call.
"""
