"""What DELTAS learns from, and the command line that trains it."""
