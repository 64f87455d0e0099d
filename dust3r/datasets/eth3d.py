"""ETH3D: high-resolution multi-view scenes by laser scanner (Schoeps et al., CVPR 2017)."""

from dust3r.datasets.processed import ProcessedPairs
from dust3r.utils.spec import DATASETS


@DATASETS.register()
class ETH3D(ProcessedPairs):
    """Pairs of ``datasets_preprocess.preprocess_eth3d``; no split of those with ground truth, see
    ``ProcessedPairs``.
    """
