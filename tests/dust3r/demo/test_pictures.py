"""Pictures of a reconstruction."""

import cv2
import numpy as np

from dust3r.demo.pictures import write_gallery
from dust3r.reconstruction import Reconstruction, Source


def test_pictures_show_deviations_where_there_are_some(tmp_path):
    depths = tuple(np.random.default_rng(n).uniform(1, 3, (20, 30)) for n in range(2))
    told = {
        "sources": tuple(Source(f"{n}.jpg", None, (30, 20), np.eye(3)) for n in range(2)),
        "images": tuple(np.full((20, 30, 3), 0.5, np.float32) for _ in range(2)),
        "poses": np.stack([np.eye(4)] * 2),
        "intrinsics": np.stack([np.diag([30.0, 30, 1])] * 2),
        "depthmaps": depths,
        "confidences": depths,
        "valid": tuple(depth > 1.5 for depth in depths),
    }
    shapes = []
    for deviations in (None, depths):
        paths = write_gallery(Reconstruction(**told, deviations=deviations), tmp_path, ["$a", "b"])
        assert [path.name for path in paths] == ["picture_000.png", "picture_001.png"]
        height, width = cv2.imread(str(paths[0])).shape[:2]
        shapes.append(width / height)
    assert shapes[1] > 1.2 * shapes[0]
