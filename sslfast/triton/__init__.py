"""Triton kernels and their launchers, one file a primitive, imported by its first call."""
