"""Launchers of the native CPU kernels: operands widened and contiguous, then one native call."""
