"""The teacher of interest points: a SuperPoint-style detector, and how it is trained."""
