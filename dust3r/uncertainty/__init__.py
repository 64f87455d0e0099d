"""Depth uncertainty: distributions, training terms and metrics."""
