"""SUN3D: large indoor places by a depth camera (Xiao et al., ICCV 2013)."""

from dust3r.datasets.processed import ProcessedPairs
from dust3r.utils.spec import DATASETS


@DATASETS.register()
class SUN3D(ProcessedPairs):
    """Pairs of ``datasets_preprocess.preprocess_sun3d``; split as ``ProcessedPairs`` says."""
