"""Empty on purpose: scripts written for the published code import it to put ``dust3r`` on their
path, and here ``dust3r`` is an ordinary package beside ``mast3r``."""
