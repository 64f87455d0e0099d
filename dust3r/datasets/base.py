"""What all datasets of posed RGB-D pairs share: from raw views to the views a network trains on."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dust3r.datasets.bad_samples import SampleError, naming_sample
from dust3r.datasets.combine import Draw, StereoDataset, View
from dust3r.datasets.correspondences import sample_correspondences
from dust3r.datasets.cropping import Frame, Size, Window, check_frame, crop_and_resize
from dust3r.datasets.degrade import STREAM, Degradation, degradation_of
from dust3r.datasets.pair_crops import overlapping_windows
from dust3r.datasets.resolution import Resolution, parse_resolutions
from dust3r.datasets.transforms import Transform
from dust3r.utils.geometry import depthmap_to_pts3d
from dust3r.utils.image import OVERSAMPLING, EncodedImage, ImgNorm, Pixels, read_depth_png

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class RawView:
    """A view as a dataset holds it, before cropping.

    ``image`` (H, W, 3) uint8 RGB, a PIL image or an encoded one; ``depthmap`` (H, W) metres, 0 or
    not finite where there is none; ``camera_pose`` (4, 4) camera-to-world; ``camera_intrinsics``
    (3, 3) pixels, first pixel's centre at (0, 0). ``dataset``, ``label`` and ``instance`` are names
    for people; ``instance`` is the image's path.
    """

    image: Pixels | EncodedImage
    depthmap: np.ndarray
    camera_pose: np.ndarray
    camera_intrinsics: np.ndarray
    dataset: str
    label: str
    instance: str


class BaseStereoViewDataset(StereoDataset):
    """Pairs of posed RGB-D images; a subclass says where they are, by three methods.

    ``dataset[index]`` and ``dataset[(index, aspect)]`` give two views: dicts with ``img``
    (3, H, W) float32 in [-1, 1]; ``true_shape`` (2,) int32, (height, width) as seen upright;
    ``idx`` (index, aspect, view); ``depthmap`` (H, W) float32, 0 where not valid; ``valid_mask``
    (H, W) bool; ``pts3d`` (H, W, 3) float32 in the world; ``camera_pose`` (4, 4) and
    ``camera_intrinsics`` (3, 3) float32; ``is_metric_scale`` bool; ``dataset``, ``label``,
    ``instance`` str. With ``n_corres`` also ``corres`` (n_corres, 2) int32, pixels (x, y), and
    ``valid_corres`` (n_corres,) bool, the same in both views: whether these pixels of the two
    views show one point.

    H <= W always: an upright image travels transposed to landscape, and ``img``, ``depthmap``,
    ``valid_mask``, ``pts3d`` and ``corres`` with it. ``camera_intrinsics`` and ``camera_pose``
    stay those of the upright image, on whose grid ``true_shape`` is given.

    Chance (coins, crops, jitter) is a function of (``seed``, index) where ``seed`` is given, else
    of the index and the draw's key, which holds the loader's seed and the epoch.

    Args:
        split: one of ``SPLITS``; what they mean is the subclass's to say.
        resolution: r for (r, r), (width, height), or a list of these, of which the sampler
            draws one per batch; multiples of 16, width >= height.
        transform: (image, rng) -> tensor, or a class of such with defaults for all arguments.
        aug_crop: range in pixels of the crop augmentation; 0 means none.
        seed: makes every sample the same in all epochs.
        n_corres: pairs of pixels to give for training descriptors; 0 for none.
        nneg: share of them, 0 to 1, that do not correspond; more where the views overlap little.
        crop_around_corres: instead of the whole images, whose principal points are central, show
            windows of any place and size around what both views see (MASt3R, section 3.4).
        is_metric_scale: whether depths and poses are in metres.
        degrade: makes pictures worse before ``transform``, and nothing else about the sample:
            'blur', 'noise' or 'dark', one of these classes of ``dust3r.datasets.degrade`` or an
            object of them; None leaves them as they are.

    Raises:
        ValueError: an argument is not one of the above.
        SampleError: (on indexing) a file cannot be read, a pose or the intrinsics are not finite,
            or neither view has a valid pixel.

    Attributes:
        oversampling: how ``EncodedImage`` decodes images; infinity for every pixel of them.
    """

    oversampling: float = OVERSAMPLING

    def __init__(
        self,
        split: str,
        resolution: Resolution,
        transform: Transform | type[Transform] = ImgNorm,
        aug_crop: int = 0,
        seed: int | None = None,
        n_corres: int = 0,
        nneg: float = 0,
        crop_around_corres: bool = False,
        is_metric_scale: bool = True,
        degrade: str | Degradation | type[Degradation] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown; choose one of {', '.join(SPLITS)}")
        if not isinstance(aug_crop, int) or aug_crop < 0:
            raise ValueError(f"aug_crop={aug_crop!r}: expected a number of pixels, 0 for none")
        if not callable(transform):
            raise ValueError(f"transform={transform!r}: expected ImgNorm, ColorJitter or the like")
        if seed is not None and (not isinstance(seed, int) or seed < 0):
            raise ValueError(f"seed={seed!r}: expected a whole number >= 0, or None")
        if not isinstance(n_corres, int) or n_corres < 0:
            raise ValueError(f"n_corres={n_corres!r}: expected a number of pixel pairs, 0 for none")
        if not 0 <= nneg <= 1:
            raise ValueError(f"nneg={nneg!r}: expected a share of n_corres between 0 and 1")
        self.split = split
        self.transform = transform() if isinstance(transform, type) else transform
        self.aug_crop = int(aug_crop)
        self.seed = seed
        self.n_corres = n_corres
        self.nneg = nneg
        self.crop_around_corres = bool(crop_around_corres)
        self.is_metric_scale = bool(is_metric_scale)
        self.degrade = degradation_of(degrade)
        self._resolutions = parse_resolutions(resolution)

    @abstractmethod
    def _get_views(self, idx: int, resolution: Size, rng: np.random.Generator) -> Sequence[RawView]:
        """The two raw views of sample ``idx``; few data sets need ``resolution`` and ``rng``."""

    @abstractmethod
    def _get_paths(self, idx: int) -> list[Path]:
        """The image file of each view of sample ``idx``."""

    @property
    def resolutions(self) -> tuple[Size, ...]:
        return self._resolutions

    def __repr__(self) -> str:
        return f"{type(self).__name__}(split={self.split!r}, {len(self)} pairs)"

    def load(self, draw: Draw) -> list[View]:
        seeds = (*self._seeds(draw), draw.index)
        rng = np.random.default_rng(seeds)
        resolution = self.resolutions[draw.aspect]
        raws = self._get_views(draw.index, resolution, rng)
        windows = (None, None)
        if self.crop_around_corres:
            windows = _overlapping_windows(raws, draw.index, resolution, rng) or windows
        views = []
        for number, (raw, window) in enumerate(zip(raws, windows, strict=True)):
            with naming_sample(raw.instance, draw.index):
                view = self._finish(raw, resolution, rng, window, (*seeds, number, STREAM))
            views.append({**view, "idx": (draw.index, draw.aspect, number)})
        if not any(view["valid_mask"].any() for view in views):
            names = [view["instance"] for view in views]
            raise SampleError(
                f"sample {draw.index}: no pixel has a valid depth in {' nor in '.join(names)}; "
                "check the depth files and their unit, or leave the pair out",
                names[0],
                draw.index,
            )
        if self.n_corres:
            first, second, valid = sample_correspondences(*views, self.n_corres, self.nneg, rng)
            for view, pixels in zip(views, (first, second), strict=True):
                view |= {"corres": pixels, "valid_corres": valid}
        return views

    def draw_paths(self, draw: Draw) -> list[Path]:
        return self._get_paths(draw.index)

    def read_image(self, path: Path, idx: int) -> EncodedImage:
        """RGB image (H, W, 3) uint8; raises a ``SampleError`` that names the file and ``idx``.

        It is decoded where its pixels are asked for, or by ``crop_and_resize`` no larger than is
        needed.
        """
        with naming_sample(path, idx):
            return EncodedImage.read(path, self.oversampling)

    def read_depth(self, path: Path, idx: int, unit: float = 1000) -> np.ndarray:
        """Depth (H, W) float32, metres; raises a ``SampleError`` naming the file and ``idx``."""
        with naming_sample(path, idx):
            return read_depth_png(path, unit)

    def _seeds(self, draw: Draw) -> tuple[int, ...]:
        return draw.key if self.seed is None else (self.seed,)

    def _finish(
        self,
        raw: RawView,
        resolution: Size,
        rng: np.random.Generator,
        window: Window | None,
        degradation_seeds: tuple[int, ...],
    ) -> View:
        pose = _pose(raw)
        frame = crop_and_resize(_frame(raw), resolution, rng, self.aug_crop, window)
        valid = np.isfinite(frame.depth) & (frame.depth > 0)
        depth = np.where(valid, frame.depth, np.float32(0))
        points = cv2.transform(depthmap_to_pts3d(depth, frame.intrinsics), pose[:3])
        if not np.isfinite(points).all():
            valid &= np.isfinite(points).all(-1)
        image = frame.image
        if self.degrade is not None:
            image = self.degrade(image, np.random.default_rng(degradation_seeds))
        image = self.transform(image, rng)
        height, width = depth.shape
        if height > width:
            image = image.transpose(1, 2).contiguous()
            depth, valid, points = (
                np.ascontiguousarray(upright.swapaxes(0, 1)) for upright in (depth, valid, points)
            )
        return {
            "img": image,
            "true_shape": np.array((height, width), np.int32),
            "depthmap": depth,
            "valid_mask": valid,
            "pts3d": points,
            "camera_pose": pose,
            "camera_intrinsics": frame.intrinsics,
            "is_metric_scale": self.is_metric_scale,
            "dataset": raw.dataset,
            "label": raw.label,
            "instance": raw.instance,
        }


def _frame(raw: RawView) -> Frame:
    image = raw.image
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    return Frame(
        image,
        np.asarray(raw.depthmap, np.float32),
        np.asarray(raw.camera_intrinsics, np.float32),
    )


def _pose(raw: RawView) -> np.ndarray:
    pose = np.asarray(raw.camera_pose, np.float32)
    if pose.shape != (4, 4):
        raise ValueError(f"the camera pose must be a 4x4 matrix, got shape {pose.shape}")
    if not np.isfinite(pose).all():
        raise ValueError(
            f"the camera pose is not finite: {pose.tolist()}; leave frames without a pose out of "
            "the metadata (the preprocessors do)"
        )
    return pose


def _overlapping_windows(
    raws: Sequence[RawView], idx: int, resolution: Size, rng: np.random.Generator
) -> tuple[Window, Window] | None:
    frames, poses = [], []
    for raw in raws:
        with naming_sample(raw.instance, idx):
            poses.append(_pose(raw))
            frames.append(_frame(raw))
            check_frame(frames[-1])
    return overlapping_windows(tuple(frames), tuple(poses), resolution, rng)
