"""Launchers of the CUDA C++ kernels over sorted lists."""
