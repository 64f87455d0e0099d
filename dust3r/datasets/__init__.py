"""Datasets of posed RGB-D pairs; importing the package registers them for specification strings."""

from dust3r.datasets.arkitscenes import ARKitScenes
from dust3r.datasets.bad_samples import SampleError, SkipBadSamples
from dust3r.datasets.base import BaseStereoViewDataset, RawView
from dust3r.datasets.blendedmvs import BlendedMVS
from dust3r.datasets.co3d import Co3d
from dust3r.datasets.degrade import Blur, Dark, Noise
from dust3r.datasets.eth3d import ETH3D
from dust3r.datasets.habitat import Habitat
from dust3r.datasets.hypersim import Hypersim
from dust3r.datasets.kitti import KITTI
from dust3r.datasets.loader import StereoLoader, get_data_loader
from dust3r.datasets.megadepth import MegaDepth
from dust3r.datasets.scannet import ScanNet
from dust3r.datasets.scannetpp import ScanNetpp
from dust3r.datasets.sevenscenes import SevenScenes
from dust3r.datasets.shards import Shards
from dust3r.datasets.staticthings3d import StaticThings3D
from dust3r.datasets.sun3d import SUN3D
from dust3r.datasets.transforms import ColorJitter
from dust3r.datasets.tumrgbd import TUMRGBD
from dust3r.datasets.waymo import Waymo
from dust3r.datasets.wildrgbd import WildRGBD

__all__ = [
    "ARKitScenes",
    "BaseStereoViewDataset",
    "BlendedMVS",
    "Blur",
    "Co3d",
    "ColorJitter",
    "Dark",
    "ETH3D",
    "Habitat",
    "Hypersim",
    "KITTI",
    "MegaDepth",
    "Noise",
    "RawView",
    "SUN3D",
    "SampleError",
    "ScanNet",
    "ScanNetpp",
    "SevenScenes",
    "Shards",
    "SkipBadSamples",
    "StaticThings3D",
    "StereoLoader",
    "TUMRGBD",
    "Waymo",
    "WildRGBD",
    "get_data_loader",
]
