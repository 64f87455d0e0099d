"""Evaluation protocol: benchmarks, uncertainty rankings, depth and camera measures, reports."""
