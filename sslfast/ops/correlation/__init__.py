"""Primitives over correlations of columns."""
