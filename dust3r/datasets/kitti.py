"""KITTI: streets by car, depth by laser (Uhrig et al., 3DV 2017; Geiger et al., IJRR 2013)."""

from dust3r.datasets.processed import ProcessedPairs
from dust3r.utils.spec import DATASETS


@DATASETS.register()
class KITTI(ProcessedPairs):
    """Pairs of ``datasets_preprocess.preprocess_kitti``; train and val of its depth benchmark."""
