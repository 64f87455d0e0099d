"""What every data set promises (DESIGN 2), checked against the world that it was made from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from world import World

import dust3r.datasets  # noqa: F401  (registers the names used in specification strings)
from dust3r.datasets import SampleError
from dust3r.datasets.base import BaseStereoViewDataset
from dust3r.datasets.combine import StereoDataset
from dust3r.utils.geometry import geotrf, inv, project
from dust3r.utils.image import rgb
from dust3r.utils.spec import DATASETS, build

SIZE = (96, 64)
_HALF_PIXEL = 0.5
_SHIFT = 0.25


@dataclass(frozen=True)
class Case:
    """A data set on a small raw tree of its release's format.

    Attributes:
        name: the class's name, for people.
        build: writes a raw tree below the folder it is given, runs the preprocessing ``main`` and
            returns what ``spec`` names in braces, such as {"ROOT": folder}.
        spec: the class's specification without ``resolution`` and ``seed``:
            "Co3d(split='train', ROOT='{ROOT}')".
        metric: whether depths and poses are in metres.
        portrait: whether some of the images are upright.
        world: what the raw tree shows.
        frame: (4, 4) rigid motion from the data set's world to ``world``'s.
        scale: metres in a unit of the data set's depths and poses.
        depth_tolerance: relative error of depth that the format brings with it.
        min_valid: least share of a view's pixels with a valid depth, median over the views.
        reprojects: 95 % bound in pixels of the points carried from view to view.
    """

    name: str
    build: Callable[[Path], dict[str, object]]
    spec: str
    metric: bool
    portrait: bool = True
    world: World = field(default_factory=World)
    frame: np.ndarray = field(default_factory=lambda: np.eye(4))
    scale: float = 1.0
    depth_tolerance: float = 0.004
    min_valid: float = 0.3
    reprojects: float = _HALF_PIXEL


@dataclass(frozen=True)
class Built:
    """A case with its processed tree."""

    case: Case
    fields: dict[str, object]

    def spec(self, resolution: object = SIZE, **options: object) -> str:
        """The specification string, with more options."""
        options = {"resolution": resolution, **options}
        added = ", ".join(f"{key}={value!r}" for key, value in options.items())
        return f"{self.case.spec.format(**self.fields).rstrip()[:-1]}, {added})"

    def open(self, resolution: object = SIZE, **options: object) -> BaseStereoViewDataset:
        return build(self.spec(resolution, **options), DATASETS)


@dataclass(frozen=True)
class Upright:
    """A view as its camera saw it, in the world's frame and in metres."""

    image: np.ndarray
    depth: np.ndarray
    valid: np.ndarray
    points: np.ndarray
    pose: np.ndarray
    intrinsics: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        return self.depth.shape[1], self.depth.shape[0]


def check_types(built: Built) -> None:
    """Keys, shapes, types and ranges of views; valid pixels are those with a depth."""
    dataset = built.open(seed=1)
    shares = []
    for index in _indices(dataset):
        views = dataset[index]
        assert [view["idx"] for view in views] == [(index, 0, 0), (index, 0, 1)]
        assert [view["instance"] for view in views] == [str(p) for p in dataset.sample_paths(index)]
        for view in views:
            height, width = view["depthmap"].shape
            assert (width, height) == SIZE
            assert view["img"].shape == (3, height, width) and view["img"].dtype == torch.float32
            assert view["img"].min() >= -1 and view["img"].max() <= 1 and view["img"].std() > 0.1
            assert sorted(view["true_shape"].tolist()) == sorted(SIZE)
            assert view["valid_mask"].dtype == bool and view["valid_mask"].shape == (height, width)
            assert view["pts3d"].shape == (height, width, 3)
            for key in ("depthmap", "pts3d", "camera_pose", "camera_intrinsics"):
                assert view[key].dtype == np.float32 and np.isfinite(view[key]).all()
            assert ((view["depthmap"] > 0) == view["valid_mask"]).all()
            assert view["is_metric_scale"] is built.case.metric
            assert all(isinstance(view[key], str) for key in ("dataset", "label", "instance"))
            turn = view["camera_pose"][:3, :3].astype(float)
            np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-4)
            assert np.linalg.det(turn) > 0
            shares.append(view["valid_mask"].mean())
    assert np.median(shares) >= built.case.min_valid


def check_world(built: Built) -> None:
    """Depth and colours are those of the world at the view's camera, to a quarter of a pixel."""
    dataset = built.open(seed=1)
    for index in _indices(dataset):
        for view in dataset[index]:
            view = upright(view, built.case)
            colours, depth = built.case.world.render(view.pose, view.intrinsics, view.size)
            low, high = (how(depth, np.ones((3, 3))) for how in (cv2.erode, cv2.dilate))
            margin = built.case.depth_tolerance * depth
            # A depth is that of a pixel nearby (nearest neighbour), hence one of those around.
            near = (view.depth >= low - margin) & (view.depth <= high + margin)
            assert near[view.valid].mean() > 0.98
            # Pixels at edges are off; many of them are colours of another place.
            shown = np.abs(view.image.astype(float) - colours).max(-1) < 40
            assert shown[view.valid].mean() > 0.9
            steady = shown & (high - low < 0.1 * depth)
            assert _shift(view.image, colours, steady) < _SHIFT
            smooth = view.valid & (high - low < 0.05 * depth)
            error = np.log(view.depth, where=smooth, out=np.zeros_like(depth)) - np.log(depth)
            assert abs(np.median(error[smooth])) < built.case.depth_tolerance + 1e-3


def check_grid(built: Built) -> None:
    """Depth lies on the pixels of its image, before cropping picks the nearest of them."""
    dataset = built.open(seed=1)
    case, shifts = built.case, []
    for index in _indices(dataset):
        for raw in dataset._get_views(index, SIZE, np.random.default_rng(0)):
            height, width = raw.depthmap.shape
            pose = np.array(raw.camera_pose, float)
            pose[:3, 3] *= case.scale
            intrinsics = np.array(raw.camera_intrinsics, float)
            _, expected = case.world.render(case.frame @ pose, intrinsics, (width, height))
            depth = np.nan_to_num(raw.depthmap * case.scale)
            low, high = (how(expected, np.ones((3, 3))) for how in (cv2.erode, cv2.dilate))
            smooth = (high - low < 0.05 * expected) & (np.abs(depth - expected) < 0.1 * expected)
            known = np.log(np.where(smooth, depth, expected))
            shifts.append(_displacement(known, np.log(expected), smooth))
    # Nearest neighbours in a single map may lean to one side; a shift leans in all of them.
    assert np.linalg.norm(np.median(shifts, 0)) < _SHIFT


def check_reprojection(built: Built) -> None:
    """Points of one view, carried into the other, meet the surface seen there."""
    dataset = built.open(seed=1)
    errors = []
    for index in _indices(dataset):
        first, second = (upright(view, built.case) for view in dataset[index])
        errors += [carried(built.case, first, second), carried(built.case, second, first)]
    assert np.median([len(error) for error in errors]) > 0.02 * SIZE[0] * SIZE[1]
    errors = np.concatenate(errors)
    assert np.median(errors) < 0.5 * _HALF_PIXEL
    assert np.percentile(errors, 95) < built.case.reprojects


def check_portrait(built: Built) -> None:
    """There are upright images; they travel transposed, and so do their maps."""
    dataset = built.open(seed=1)
    shapes = {tuple(view["true_shape"]) for i in _indices(dataset) for view in dataset[i]}
    assert SIZE in shapes, "no view is upright: (height, width) == (96, 64)"


def check_seed(built: Built) -> None:
    """A seed fixes samples over openings and epochs; without one, epochs differ."""
    options = {"aug_crop": 16, "transform": _Name("ColorJitter")}
    first, second = built.open(seed=3, **options), built.open(seed=3, **options)
    free = built.open(**options)
    second.set_epoch(5)
    _assert_same(first[0], second[0])
    before = free[0][0]["img"]
    free.set_epoch(1)
    assert not torch.equal(before, free[0][0]["img"])
    other = built.open(seed=4, **options)
    assert not torch.equal(first[0][0]["img"], other[0][0]["img"])


def check_algebra(built: Built) -> None:
    """``N @``, ``N *`` and ``+`` with lists of resolutions, as the training commands have them."""
    sizes = [(96, 64), (96, 48)]
    text = built.spec(sizes, seed=2)
    dataset = build(f"7 @ {text} + 2 * {text}", DATASETS)
    alone = build(text, DATASETS)
    assert len(dataset) == 7 + 2 * len(alone)
    for index in (0, 6, len(dataset) - 1):
        for aspect, (width, height) in enumerate(sizes):
            for view in dataset[(index, aspect)]:
                assert view["depthmap"].shape == (height, width)


def check_missing_file(built: Built) -> None:
    """An image that is gone is named."""
    dataset: StereoDataset = built.open(seed=1)
    path = dataset.sample_paths(0)[1]
    hidden = path.rename(path.with_name(f"hidden-{path.name}"))
    try:
        with pytest.raises(SampleError, match=path.name) as caught:
            dataset[0]
        assert caught.value.path == str(path) and caught.value.index == 0
    finally:
        hidden.rename(path)


def upright(view: dict[str, object], case: Case) -> Upright:
    """A view (not batched) as its camera saw it, in the world's frame and in metres."""
    height, _ = (int(side) for side in view["true_shape"])
    maps = [view[key] for key in ("depthmap", "valid_mask", "pts3d")]
    if maps[0].shape[0] != height:
        maps = [array.swapaxes(0, 1) for array in maps]
    depth, valid, points = maps
    pose = view["camera_pose"].astype(float)
    pose[:3, 3] *= case.scale
    return Upright(
        (rgb(view["img"], view["true_shape"]) * 255).round().astype(np.uint8),
        depth * case.scale,
        valid,
        geotrf(case.frame, points.astype(float) * case.scale),
        case.frame @ pose,
        view["camera_intrinsics"].astype(float),
    )


def carried(case: Case, first: Upright, second: Upright) -> np.ndarray:
    """Errors in pixels (K,) of the points of ``first`` that ``second`` sees by the world's depth.

    A point is projected into the second view; what the second view holds there is projected back,
    and should come out at the pixel it came from.
    """
    pixels, z = project(geotrf(inv(second.pose), first.points), second.intrinsics)
    seen = first.valid & (z > 0)
    x, y = np.where(seen[..., None], pixels, -10).astype(np.float32).transpose(2, 0, 1)
    _, depth = case.world.render(second.pose, second.intrinsics, second.size)
    wobble = cv2.dilate(depth, np.ones((5, 5))) - cv2.erode(depth, np.ones((5, 5)))
    there = cv2.remap(depth, x, y, cv2.INTER_LINEAR)
    seen &= np.abs(there - z) < 0.05 * z
    seen &= cv2.remap(wobble, x, y, cv2.INTER_NEAREST, borderValue=np.inf) < 0.1 * z
    seen &= cv2.remap(second.valid.astype(np.float32), x, y, cv2.INTER_LINEAR) > 0.999
    met = cv2.remap(second.points.astype(np.float32), x, y, cv2.INTER_LINEAR).astype(float)
    back, _ = project(geotrf(inv(first.pose), met), first.intrinsics)
    width, height = first.size
    here = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
    return np.linalg.norm(back - here, axis=-1)[seen]


def _indices(dataset: StereoDataset, most: int = 12) -> list[int]:
    return np.unique(np.linspace(0, len(dataset) - 1, most).round().astype(int)).tolist()


def _shift(image: np.ndarray, expected: np.ndarray, where: np.ndarray) -> float:
    """How far in pixels an image (H, W, 3) is from where it should be."""
    blurred = (cv2.GaussianBlur(a, (0, 0), 1).astype(float) for a in (image, expected))
    return float(np.linalg.norm(_displacement(*blurred, where)))


def _displacement(image: np.ndarray, expected: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The displacement (2,) in pixels that best explains the difference of two images."""
    down, right = np.gradient(expected, axis=(0, 1))
    slopes = np.stack([right[where].ravel(), down[where].ravel()], 1)
    return np.linalg.lstsq(slopes, (expected - image)[where].ravel(), rcond=None)[0]


def _assert_same(views: list[dict], others: list[dict]) -> None:
    for view, other in zip(views, others, strict=True):
        assert view.keys() == other.keys()
        for key, value in view.items():
            np.testing.assert_array_equal(np.asarray(value), np.asarray(other[key]), err_msg=key)


class _Name(str):
    """A name in a specification, which is written without quotes."""

    __repr__ = str.__str__
