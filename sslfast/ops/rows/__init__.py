"""Primitives over rows."""
