"""DELTAS: depth from posed frames by learned triangulation and densification of sparse points.

Sinha et al., "DELTAS: Depth Estimation by Learning Triangulation And densification of Sparse
points", ECCV 2020. ``deltas.model.Deltas`` is the whole, ``deltas.checkpoint`` reads its weights.
"""
