"""Triton kernels over rows, and their launchers."""
