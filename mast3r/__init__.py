"""MASt3R: descriptors and matching on top of pairwise pointmaps (Leroy et al., 2024)."""
