"""Launchers of the native CPU kernels over correlations of columns."""
