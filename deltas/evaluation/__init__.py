"""How good DELTAS is on sequences of frames: measures, tables, pictures."""
