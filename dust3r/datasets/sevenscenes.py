"""7-Scenes: seven rooms, several walks through each (Shotton et al., CVPR 2013)."""

from dust3r.datasets.processed import ProcessedPairs
from dust3r.utils.spec import DATASETS


@DATASETS.register()
class SevenScenes(ProcessedPairs):
    """Pairs of ``datasets_preprocess.preprocess_7scenes``; its official train and test, no val."""
