"""The demo: photographs to a 3-D reconstruction that shows how far to trust it."""
