"""Waymo Open Dataset, Perception (Sun et al., CVPR 2020): five cameras on a car, and its lidar."""

from dust3r.datasets.indexed_pairs import ScenePairs
from dust3r.utils.spec import DATASETS


@DATASETS.register()
class Waymo(ScenePairs):
    """Street scenes with sparse lidar depth, in metres.

    ROOT holds ``waymo_pairs.npz`` with ``scenes`` (folders of segments), ``frames``
    ("00012_1": frame and camera) and ``pairs`` (rows of scene, frame, frame), and
    ``<scene>/<frame>.jpg``, ``.exr`` and ``.npz``. Splits are by a hash of the segment's name: a
    tenth of the segments is held out, none of a single one.
    """

    INDEX = "waymo_pairs.npz"
    PREPROCESS = "preprocess_waymo.py"
    METRIC = True
    IMAGES_KEY = "frames"
