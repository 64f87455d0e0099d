"""ScanNet: rooms by a depth camera on a tablet (Dai et al., CVPR 2017)."""

from dust3r.datasets.processed import ProcessedPairs
from dust3r.utils.spec import DATASETS


@DATASETS.register()
class ScanNet(ProcessedPairs):
    """Pairs of ``datasets_preprocess.preprocess_scannet``; its official train, val and test."""
