"""Raw RGB-D recordings: the formats they come in, and reading one frame of them."""
