"""Sequences of posed RGB-D frames, from processed data sets and raw recordings."""
