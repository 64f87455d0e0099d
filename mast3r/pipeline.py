"""From loaded images to a sparsely aligned reconstruction in one call, and its scene graph."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dust3r.image_pairs import make_pairs, pair_count
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.pipeline import Progress, finished, part_of
from dust3r.reconstruction import Reconstruction
from mast3r.cloud_opt.sparse_ga import sparse_global_alignment
from mast3r.matching import need_descriptors
from mast3r.retrieval import Retrieval


def reconstruct_sparse(
    model: AsymmetricCroCo3DStereo,
    images: Sequence[dict[str, Any]],
    *,
    scene_graph: str = "complete",
    cache_path: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 8,
    matching_conf_thr: float = 0.0,
    shared_intrinsics: bool = False,
    opt_depth: bool = True,
    depth: str = "network",
    clean: bool = True,
    sky: bool = False,
    verbose: bool = True,
    progress: Progress | None = None,
    **options: Any,
) -> Reconstruction:
    """Cameras, depth and points of photographs, through their matches.

    Args:
        model: with descriptors.
        images: views of ``dust3r.utils.image.load_images``, two or more.
        scene_graph: which pairs are looked at, as for ``dust3r.image_pairs.make_pairs``, and
            ``'retrieval-a-k'``.
        cache_path, device, batch_size, matching_conf_thr, shared_intrinsics, opt_depth, depth: as
            for ``mast3r.cloud_opt.sparse_ga.sparse_global_alignment``.
        clean: drop points that stand in front of what other cameras saw.
        sky: mask the sky.
        verbose: show progress bars.
        progress: called with what is being done and the fraction of the whole that is done.
        options: further ones of ``sparse_global_alignment``, such as ``niter1`` and ``niter2``.

    Raises:
        ValueError: fewer than two images, an unknown graph, a model without descriptors, or images
            that do not match. The message is meant for the person who asked.
        mast3r.cloud_opt.cache.CacheError: the cache folder cannot be written.
    """

    report = partial(part_of, progress)
    # Before the network works for minutes.
    need_descriptors(model)
    pairs = scene_pairs(model, images, scene_graph, device, batch_size, verbose)
    scene = sparse_global_alignment(
        images,
        pairs,
        cache_path,
        model,
        device=device,
        batch_size=batch_size,
        matching_conf_thr=matching_conf_thr,
        shared_intrinsics=shared_intrinsics,
        opt_depth=opt_depth,
        depth=depth,
        verbose=verbose,
        progress=report("matching and aligning", 0.0, 0.95),
        **options,
    )
    report("depth maps", 0.95, 1.0)
    result = finished(scene, clean, sky)
    report("done", 1.0, 1.0)
    return result


def scene_pairs(
    model: AsymmetricCroCo3DStereo,
    images: Sequence[dict[str, Any]],
    scene_graph: str,
    device: str | torch.device | None = None,
    batch_size: int = 8,
    verbose: bool = True,
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """``make_pairs``, with the images' similarity where the graph is a retrieval graph."""
    similarity = None
    if scene_graph.startswith("retrieval"):
        # Mistakes in the graph are to cost nothing: any similarity shows them.
        pair_count(len(images), scene_graph, sim_mat=np.eye(len(images)))
        retrieval = Retrieval.build(
            model, images, device=device, batch_size=batch_size, verbose=verbose
        )
        similarity = retrieval.similarity
    return make_pairs(images, scene_graph, symmetrize=False, sim_mat=similarity)
