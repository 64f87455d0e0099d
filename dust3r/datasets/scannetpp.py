"""ScanNet++ (Yeshwanth et al., ICCV 2023), or any recording in the processed layout."""

from dust3r.datasets.processed import METADATA, ProcessedPairs, read_metadata
from dust3r.utils.spec import DATASETS

__all__ = ["METADATA", "ScanNetpp", "read_metadata"]


@DATASETS.register()
class ScanNetpp(ProcessedPairs):
    """Pairs of ScanNet++, and of a person's own recordings; see ``ProcessedPairs``."""
