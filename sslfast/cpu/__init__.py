"""Launchers of the native CPU kernels that do more than `sslfast._core.calls.native` does."""
