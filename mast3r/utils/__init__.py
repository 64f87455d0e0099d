"""Small helpers of the matching half."""
