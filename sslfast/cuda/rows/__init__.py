"""Launchers of the CUDA C++ kernels over rows."""
