"""How well images are retrieved: by the project's descriptors, and by others for comparison.

python scripts/eval_retrieval.py --ckpt CHECKPOINT --root ROOT --map FOLDER --queries FOLDER

- All images of a processed data set (``--root``) in one collection: share, of the k images most
  similar to each, of those that overlap it by 0.2 or more (of as many as there are, where fewer
  than k do). ``scene``: share of the 10 most similar that are of the same scene at all.
- The same of each scene as a collection of its own (``alone``, k = 3), of every third image of
  each (``few``), and of four scenes with two overlapping images each (``couples``, k = 1; where
  there are four).
- A recording asked for frames of another (``--map``, ``--queries``; with poses in one frame):
  R@k, the queries with a frame within ``--metres`` and ``--degrees`` among the k most similar, of
  those that have one at all; P@5, the share of such among the 5 most similar.

``mean`` is the mean token less the collection's, ``gem`` its generalised mean (power 3),
``whitened`` the mean of whitened tokens; ``vlad`` is ``mast3r.retrieval``.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from datasets_preprocess.layout import depth_path, image_path, read_depth, read_metadata
from datasets_preprocess.overlap import score_pairs
from datasets_preprocess.rgbd.formats import RawFrame, find_recordings
from dust3r.model import AsymmetricCroCo3DStereo, load_model
from dust3r.utils.device import best_device
from dust3r.utils.image import load_images
from dust3r.utils.reprojection import shrink
from mast3r.retrieval import Vocabulary, encode

OVERLAP, STRIDE, TOGETHER = 0.2, 4, 4

Describe = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="a processed data set")
    parser.add_argument("--map", type=Path, default=None, help="a recording with poses")
    parser.add_argument("--queries", type=Path, default=None, help="one of the same place")
    parser.add_argument("--metres", type=float, default=0.5)
    parser.add_argument("--degrees", type=float, default=30)
    parser.add_argument("--size", type=int, default=224, help="as of load_images")
    args = parser.parse_args()
    model = load_model(args.ckpt, best_device(), verbose=False)
    print(f"{args.ckpt}\n")
    tokens, overlaps, scenes = data_set(model, args.root, args.size)
    measured = {name: {} for name in METHODS}
    for name, learn in METHODS.items():
        measured[name] |= in_collection(learn, tokens, overlaps, scenes)
    if args.map and args.queries:
        mapped, queries = (find_recordings([one])[0].frames for one in (args.map, args.queries))
        near = near_poses(queries, mapped, args.metres, args.degrees)
        known, asked = (
            encode(model, load_images([f.color for f in frames], args.size, verbose=False))
            for frames in (mapped, queries)
        )
        for name, learn in METHODS.items():
            measured[name] |= across(learn, known, asked, near)
    columns = list(measured["mean"])
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, values in measured.items():
        print(f"| {name} | {' | '.join(f'{100 * values[c]:.1f}' for c in columns)} |")


def learn_mean(tokens: Sequence[Tensor]) -> Describe:
    mean = torch.stack([one.float().mean(0) for one in tokens]).mean(0)
    return lambda one: F.normalize(one.float().mean(0) - mean, dim=0)


def learn_gem(tokens: Sequence[Tensor]) -> Describe:
    lowest = torch.stack([one.float().amin(0) for one in tokens]).amin(0)
    return lambda one: F.normalize(
        (one.float() - lowest).clamp(min=0).pow(3).mean(0).pow(1 / 3), dim=0
    )


def learn_whitened(tokens: Sequence[Tensor]) -> Describe:
    vocabulary = Vocabulary.learn(tokens)

    def describe(one: Tensor) -> Tensor:
        whitened = (one.float() - vocabulary.mean) @ vocabulary.projection
        return F.normalize(whitened.mean(0), dim=0)

    return describe


def learn_vlad(tokens: Sequence[Tensor]) -> Describe:
    return Vocabulary.learn(tokens).describe


METHODS = {"mean": learn_mean, "gem": learn_gem, "whitened": learn_whitened, "vlad": learn_vlad}


def in_collection(
    learn: Callable[[Sequence[Tensor]], Describe],
    tokens: Sequence[Tensor],
    overlaps: np.ndarray,
    scenes: np.ndarray,
) -> dict[str, float]:
    """Columns of the data set: ``overlaps`` (N, N), ``scenes`` (N,) numbers."""
    order = ranked(learn, tokens)
    true = overlaps >= OVERLAP
    found = {f"P@{k}": float(np.mean(precision(order, true, k))) for k in (1, 5, 10)}
    found["scene"] = float((scenes[order[:, :10]] == scenes[:, None]).mean())
    for name, step in (("alone", 1), ("few", 3)):
        parts = [np.flatnonzero(scenes == scene)[::step] for scene in np.unique(scenes)]
        values = [
            precision(ranked(learn, [tokens[n] for n in part]), true[np.ix_(part, part)], 3)
            for part in parts
        ]
        found[name] = float(np.mean(np.concatenate(values)))
    couples = [couple(overlaps, np.flatnonzero(scenes == scene)) for scene in np.unique(scenes)]
    if len(couples) < TOGETHER:
        return found
    values = []
    for start in range(len(couples)):
        part = np.concatenate([couples[(start + n) % len(couples)] for n in range(TOGETHER)])
        values.append(
            precision(ranked(learn, [tokens[n] for n in part]), true[np.ix_(part, part)], 1)
        )
    return found | {"couples": float(np.mean(np.concatenate(values)))}


def across(
    learn: Callable[[Sequence[Tensor]], Describe],
    known: Sequence[Tensor],
    asked: Sequence[Tensor],
    near: np.ndarray,
) -> dict[str, float]:
    """Columns of the recordings: ``near`` (Q, N) bool."""
    describe = learn(known)
    first, second = (torch.stack([describe(t) for t in some]) for some in (asked, known))
    order = (-(first @ second.T)).argsort(1).numpy()
    able = near.any(1)
    hits = np.take_along_axis(near, order, 1)[able]
    found = {f"R@{k}": float(hits[:, :k].any(1).mean()) for k in (1, 5, 10)}
    return found | {"map P@5": float(np.mean(precision(order, near, 5)))}


def ranked(learn: Callable[[Sequence[Tensor]], Describe], tokens: Sequence[Tensor]) -> np.ndarray:
    """(N, N - 1): the others of each image, most similar first."""
    describe = learn(tokens)
    descriptors = torch.stack([describe(one) for one in tokens])
    similarity = descriptors @ descriptors.T
    return (-similarity.fill_diagonal_(-torch.inf)).argsort(1)[:, :-1].numpy()


def couple(overlaps: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The two of ``members`` whose overlap is nearest to a half."""
    among = overlaps[np.ix_(members, members)]
    nearest = np.abs(np.where(np.eye(len(members)), 9, among) - 0.5).argmin()
    return members[list(np.unravel_index(nearest, among.shape))]


def precision(order: np.ndarray, true: np.ndarray, k: int) -> np.ndarray:
    """Of each row that has a true one: share of true ones among its first k, or of as many."""
    true = true & ~(np.eye(*true.shape, dtype=bool) & (true.shape[0] == true.shape[1]))
    number = true.sum(1)
    hits = np.take_along_axis(true, order[:, :k], 1).sum(1)
    return (hits / np.minimum(number, k).clip(1))[number > 0]


def data_set(
    model: AsymmetricCroCo3DStereo, root: Path, size: int
) -> tuple[list[Tensor], np.ndarray, np.ndarray]:
    """Tokens of the images, their overlaps (N, N), their scenes (N,)."""
    data = read_metadata(root)
    count = len(data.images)
    names = list(zip(data.scenes[data.sceneids], data.images, strict=True))
    files = [image_path(root, *name) for name in names]
    overlaps = np.zeros((count, count))
    for scene in range(len(data.scenes)):
        members = np.flatnonzero(data.sceneids == scene)
        unit = float(data.depth_unit[scene])
        small: list[Any] = [
            shrink(read_depth(depth_path(root, *names[n]), unit), data.intrinsics[n], STRIDE)
            for n in members
        ]
        depths, intrinsics = (np.stack(arrays) for arrays in zip(*small, strict=True))
        poses = data.trajectories[members]
        for i, j, score in score_pairs(depths, intrinsics, poses, min_overlap=OVERLAP):
            first, second = members[int(i)], members[int(j)]
            overlaps[first, second] = overlaps[second, first] = score
    return encode(model, load_images(files, size, verbose=False)), overlaps, data.sceneids


def near_poses(
    queries: Sequence[RawFrame], mapped: Sequence[RawFrame], metres: float, degrees: float
) -> np.ndarray:
    """(Q, N) bool: which frames are near to which."""
    ours, theirs = (np.stack([frame.pose for frame in frames]) for frames in (queries, mapped))
    distance = np.linalg.norm(ours[:, None, :3, 3] - theirs[None, :, :3, 3], axis=-1)
    traces = np.einsum("qij,nij->qn", ours[:, :3, :3], theirs[:, :3, :3])
    angle = np.degrees(np.arccos(((traces - 1) / 2).clip(-1, 1)))
    return (distance <= metres) & (angle <= degrees)


if __name__ == "__main__":
    main()
