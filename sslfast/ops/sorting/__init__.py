"""Primitives over sorted lists."""
