"""DELTAS beside other ways to depth from posed frames, on the same frames."""
