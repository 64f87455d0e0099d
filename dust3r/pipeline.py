"""From loaded images to a reconstruction in one call: what the demo and the evaluation run."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dust3r.cloud_opt import GlobalAlignerMode, global_aligner
from dust3r.cloud_opt.overlap import overlapping_parts
from dust3r.image_pairs import make_pairs
from dust3r.inference import inference
from dust3r.model import AsymmetricCroCo3DStereo
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

    def report(what: str, begin: float, end: float) -> Callable[[float], None]:
        def part(fraction: float) -> None:
            if progress is not None:
                progress(what, begin + (end - begin) * fraction)

        part(0.0)
        return part

    pairs = make_pairs(images, scene_graph)
    output = inference(
        pairs,
        model,
        device,
        batch_size,
        verbose=verbose,
        progress=report("looking at pairs", 0.0, _ALIGNMENT_BEGINS),
    )
    notes: list[str] = []
    if check_overlap:
        output, notes = _largest_overlapping(output, {int(v["idx"]): v["source"] for v in images})
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
    if clean:
        scene = scene.clean_pointcloud()
    if sky:
        scene = scene.mask_sky()
    sources = {int(view["idx"]): view["source"] for view in images}
    chosen = [sources[name] for name in scene.image_ids]
    result = Reconstruction.from_scene(scene, chosen, [*notes, *scene.notes])
    report("done", 1.0, 1.0)
    return result


def _largest_overlapping(
    output: dict[str, Any], sources: dict[int, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The pairs among the largest part of images that overlap, and what was left out.

    Two images are always kept, with a note: there is nothing else to reconstruct.
    """
    parts = overlapping_parts(output)
    if len(parts) == 1:
        return output, []
    named = "; ".join(
        f"part {number}: {', '.join(sources[i].name for i in part)}"
        for number, part in enumerate(parts, 1)
    )
    if len(parts[0]) == 1:
        note = (
            "no two images seem to show the same place, so cameras and points may be wrong: take "
            f"photographs that overlap by half or more ({named})"
        )
        log.warning(note)
        return output, [note]
    note = (
        f"the images seem to show {len(parts)} places that do not overlap; only part 1 is "
        f"reconstructed. Add photographs between the parts, or reconstruct each alone. {named}"
    )
    log.warning(note)
    largest = set(parts[0])
    ids = zip(output["view1"]["idx"], output["view2"]["idx"], strict=True)
    keep = [p for p, pair in enumerate(ids) if {int(i) for i in pair} <= largest]

    def chosen(values: Any) -> Any:
        if isinstance(values, torch.Tensor):
            return values[keep]
        return [values[p] for p in keep] if isinstance(values, (list, tuple)) else values

    return {
        key: {name: chosen(values) for name, values in part.items()}
        if isinstance(part, dict)
        else part
        for key, part in output.items()
    }, [note]
