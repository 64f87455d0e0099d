"""Are interest points found again? Detectors on images and homographies of them.

python scripts/eval_detector.py checkpoints/corners_small.safetensors IMAGES... --picture out.png

Each image, at --size, is compared with views of it (turned up to 45 degrees, zoomed by 0.7 to 1.5,
tilted), in which every detector gives its --points best points, no two of them within 4 pixels. A
point is found again if the other image has one within 1, 2 or 3 pixels of where it should be.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from deltas.detector.adaptation import adapted_scores, random_homographies, warp
from deltas.detector.metrics import repeatability
from deltas.detector.superpoint import SuperPoint, load_detector
from deltas.interest import select_points

RADIUS = 4
BORDER = 8
REACHES = (1, 2, 3)

Scorer = Callable[[Tensor], Tensor]


def main() -> None:
    args = _parse()
    torch.set_num_threads(1)
    detector = load_detector(args.detector)
    scorers = _scorers(detector, args.views)
    images = [_grey(path, args.size) for path in args.images]
    print(
        f"{len(images)} images of {args.size[0]} x {args.size[1]}, {args.homographies} views "
        f"each, {args.points} points; found again within {REACHES} px; CPU seconds an image"
    )
    for name, scorer in scorers.items():
        rows, seconds = _repeated(scorer, images, args.points, args.homographies)
        values = "  ".join(f"{value:.3f}" for value in np.nanmean(rows, 0))
        print(f"{name:28s} {values}  {seconds:.3f} s")
    if args.picture:
        picture = [_drawn(image, scorers, args.points) for image in images[:4]]
        cv2.imwrite(str(args.picture), np.vstack(picture))


def _scorers(detector: SuperPoint, views: int) -> dict[str, Scorer]:
    generator = torch.Generator().manual_seed(0)
    return {
        "detector": partial(adapted_scores, detector, count=1),
        f"detector, {views} views": partial(
            adapted_scores, detector, count=views, generator=generator
        ),
        "Shi-Tomasi (goodFeatures)": _shi_tomasi,
        "FAST": _fast,
        "random pixels": lambda grey: torch.rand(grey[:, 0].shape, generator=generator),
    }


def _shi_tomasi(grey: Tensor) -> Tensor:
    """What ``cv2.goodFeaturesToTrack`` orders points by."""
    return torch.from_numpy(cv2.cornerMinEigenVal(_bytes(grey), 3))[None]


def _fast(grey: Tensor) -> Tensor:
    scores = np.zeros(grey.shape[-2:], np.float32)
    for found in cv2.FastFeatureDetector_create(threshold=3).detect(_bytes(grey)):
        scores[round(found.pt[1]), round(found.pt[0])] = found.response
    return torch.from_numpy(scores)[None]


def _bytes(grey: Tensor) -> np.ndarray:
    return (grey[0, 0] * 255).round().byte().numpy()


def _repeated(
    scorer: Scorer, images: list[Tensor], points: int, homographies: int
) -> tuple[np.ndarray, float]:
    """Repeatability (images x views, reaches), and CPU seconds of ``scorer`` for an image."""
    rows, spent, calls = [], 0.0, 0
    views = torch.Generator().manual_seed(1)
    for image in images:
        height, width = image.shape[-2:]
        inner = torch.zeros_like(image)
        inner[..., BORDER:-BORDER, BORDER:-BORDER] = 1
        to_view = random_homographies(homographies, (height, width), views)
        start = time.process_time()
        first = scorer(image)
        found = _best(first, inner, points)
        for homography in to_view.split(1):
            view = warp(image, homography.inverse(), "border")
            seen = (warp(inner, homography.inverse()) > 0.99) * inner
            again = _best(scorer(view), seen, points)
            matrix = homography[0].double().numpy()
            rows.append([repeatability(found, again, matrix, (width, height), r) for r in REACHES])
        spent += time.process_time() - start
        calls += 1 + homographies
    return np.array(rows), spent / calls


def _best(scores: Tensor, allowed: Tensor, count: int) -> np.ndarray:
    """The best points (N, 2), (x, y), of scores (1, H, W) where (1, 1, H, W) is not 0."""
    places, values = select_points(scores * allowed[:, 0], count, 0.0, 1.0, radius=RADIUS)
    return places[values > 0].double().numpy()


def _grey(path: Path, size: tuple[int, int]) -> Tensor:
    """(1, 1, H, W) in [0, 1]."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise FileNotFoundError(f"{path} is no image that OpenCV reads")
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return torch.from_numpy(image)[None, None].float() / 255


def _drawn(image: Tensor, scorers: dict[str, Scorer], points: int) -> np.ndarray:
    """One row: the image with the points of each detector but the last, at twice the size."""
    panels = []
    for scorer in list(scorers.values())[:-1]:
        panel = cv2.cvtColor(_bytes(image), cv2.COLOR_GRAY2BGR)
        panel = cv2.resize(panel, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
        for x, y in 2 * _best(scorer(image), torch.ones_like(image), points) + 0.5:
            cv2.circle(panel, (round(x), round(y)), 3, (0, 255, 0), 1, cv2.LINE_AA)
        panels.append(panel)
    return np.hstack(panels)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("detector", type=Path, help="for deltas.detector.superpoint.load_detector")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 240))
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--views", type=int, default=16, help="of homographic adaptation")
    parser.add_argument("--homographies", type=int, default=4, help="views of each image")
    parser.add_argument("--picture", type=Path, help="of the points in the first four images")
    return parser.parse_args()


if __name__ == "__main__":
    main()
