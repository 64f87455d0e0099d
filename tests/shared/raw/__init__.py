"""Raw data sets in their release's format, one module each, which holds its ``CASE``."""
