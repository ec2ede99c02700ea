"""Triton kernels over similarities of rows, and their launchers."""
