"""Launchers of the native CPU kernels over sorted lists."""
