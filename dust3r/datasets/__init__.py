"""Datasets of posed RGB-D pairs; importing the package registers them for specification strings."""

from dust3r.datasets.bad_samples import SampleError, SkipBadSamples
from dust3r.datasets.base import BaseStereoViewDataset, RawView
from dust3r.datasets.degrade import Blur, Dark, Noise
from dust3r.datasets.loader import StereoLoader, get_data_loader
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.datasets.transforms import ColorJitter

__all__ = [
    "BaseStereoViewDataset",
    "Blur",
    "ColorJitter",
    "Dark",
    "Noise",
    "RawView",
    "SampleError",
    "ScanNetpp",
    "SkipBadSamples",
    "StereoLoader",
    "get_data_loader",
]
