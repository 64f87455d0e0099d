"""Sparse alignment for the demo."""
