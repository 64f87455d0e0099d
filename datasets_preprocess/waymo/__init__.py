"""Waymo's Perception segments: their records, and the cameras and lidar points in them."""
