"""Triton kernels over correlations of columns, and their launchers."""
