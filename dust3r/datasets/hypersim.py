"""Hypersim: rendered rooms (Roberts et al., ICCV 2021)."""

from dust3r.datasets.processed import ProcessedPairs
from dust3r.utils.spec import DATASETS


@DATASETS.register()
class Hypersim(ProcessedPairs):
    """Pairs of ``datasets_preprocess.preprocess_hypersim``; its official train, val and test."""
