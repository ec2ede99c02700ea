"""Launchers of the native CPU kernels over rows."""
