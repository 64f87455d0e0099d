"""From loaded images to a reconstruction in one call: what the demo and the evaluation run."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from dust3r.cloud_opt import GlobalAlignerMode, global_aligner
from dust3r.cloud_opt.observations import check_weights
from dust3r.cloud_opt.scene import Scene
from dust3r.image_pairs import make_pairs
from dust3r.inference import inference
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.overlap import overlapping_parts
from dust3r.reconstruction import Reconstruction

log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]

# Where the parts of the work begin, as fractions of the whole on a CPU.
_ALIGNMENT_BEGINS, _MAPS_BEGIN = 0.7, 0.95


def reconstruct(
    model: AsymmetricCroCo3DStereo,
    images: Sequence[dict[str, Any]],
    *,
    scene_graph: str = "complete",
    device: str | torch.device | None = None,
    batch_size: int = 8,
    niter: int = 300,
    shared_intrinsics: bool = False,
    weights: str = "confidence",
    clean: bool = True,
    sky: bool = False,
    check_overlap: bool = True,
    verbose: bool = True,
    progress: Progress | None = None,
) -> Reconstruction:
    """Cameras, depth and points of photographs.

    Args:
        images: views of ``dust3r.utils.image.load_images``, two or more.
        scene_graph: which pairs are looked at, as for ``dust3r.image_pairs.make_pairs``.
        device: of the network; the model's own where None.
        batch_size: pairs at a time; halved by itself where memory ends.
        niter: most iterations of the global alignment.
        shared_intrinsics: one camera took all images.
        weights: what a point counts in the alignment: its ``'confidence'`` or, with models that
            state a variance, its ``'uncertainty'``.
        clean: drop points that stand in front of what other cameras saw.
        sky: mask the sky.
        check_overlap: leave out images that share nothing with the others; a note names them.
        verbose: show progress bars.
        progress: called with what is being done and the fraction of the whole that is done.

    Raises:
        ValueError: fewer than two images, an unknown graph or ``weights``, or a model without what
            ``weights`` needs. The message is meant for the person who asked.
    """

    report = partial(part_of, progress)
    # Before the network works for minutes.
    check_weights(weights, model.states_variance)
    pairs = make_pairs(images, scene_graph)
    notes: list[str] = []
    if check_overlap:
        pairs, notes = _largest_part(images, pairs, verbose)
    output = inference(
        pairs,
        model,
        device,
        batch_size,
        verbose=verbose,
        progress=report("looking at pairs", 0.0, _ALIGNMENT_BEGINS),
    )
    scene = global_aligner(
        output,
        mode=GlobalAlignerMode.PointCloudOptimizer,
        weights=weights,
        shared_intrinsics=shared_intrinsics,
        verbose=verbose,
    )
    scene.compute_global_alignment(
        niter=niter, progress=report("aligning", _ALIGNMENT_BEGINS, _MAPS_BEGIN)
    )
    report("fusing depth maps", _MAPS_BEGIN, 1.0)
    result = finished(scene, clean, sky, notes)
    report("done", 1.0, 1.0)
    return result


def part_of(
    progress: Progress | None, what: str, begin: float, end: float
) -> Callable[[float], None]:
    """What is told the fraction of a part of the work, and tells ``progress`` that of the whole."""

    def part(fraction: float) -> None:
        if progress is not None:
            progress(what, begin + (end - begin) * fraction)

    part(0.0)
    return part


def finished(scene: Scene, clean: bool, sky: bool, notes: Sequence[str] = ()) -> Reconstruction:
    """The reconstruction of an aligned scene, with clean-up and sky as ``reconstruct`` has them."""
    if clean:
        scene = scene.clean_pointcloud(tol=scene.clean_tolerance)
    if sky:
        scene = scene.mask_sky()
    return Reconstruction.from_scene(scene, notes)


def _largest_part(
    images: Sequence[dict[str, Any]], pairs: list[tuple[dict, dict]], verbose: bool
) -> tuple[list[tuple[dict, dict]], list[str]]:
    """The pairs among the largest part of images that overlap, and what was left out.

    Where no two images overlap all pairs stay, with a note: there is nothing else to reconstruct.
    """
    parts = overlapping_parts(images, pairs, verbose)
    if len(parts) == 1:
        return pairs, []
    named = "; ".join(
        f"part {number}: {', '.join(images[n]['source'].name for n in part)}"
        for number, part in enumerate(parts, 1)
    )
    if len(parts[0]) == 1:
        note = (
            "no matches confirm that these images show the same place, so cameras and points may "
            f"be wrong; photographs that overlap by half or more are safe ({named})"
        )
        log.warning(note)
        return pairs, [note]
    note = (
        f"the images seem to show {len(parts)} places that do not overlap; only part 1 is "
        "reconstructed. Add photographs between the parts, reconstruct each alone, or switch the "
        f"check off. {named}"
    )
    log.warning(note)
    kept = {int(images[n]["idx"]) for n in parts[0]}
    return [pair for pair in pairs if {int(view["idx"]) for view in pair} <= kept], [note]
