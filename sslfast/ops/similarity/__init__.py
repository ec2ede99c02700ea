"""Primitives over similarities of rows."""
