"""TUM RGB-D: sequences with poses by motion capture (Sturm et al., IROS 2012)."""

from dust3r.datasets.processed import ProcessedPairs
from dust3r.utils.spec import DATASETS


@DATASETS.register()
class TUMRGBD(ProcessedPairs):
    """Pairs of ``datasets_preprocess.preprocess_tum``; split as ``ProcessedPairs`` says."""
