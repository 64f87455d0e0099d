"""The demo without a browser: photographs to files."""

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from dust3r.demo import weights
from dust3r.demo.pictures import write_gallery, write_overview
from dust3r.export import export_all
from dust3r.pipeline import Progress
from dust3r.utils.image import load_images

log = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> list[Path]:
    """Reconstruct ``args.images`` and write everything to ``args.output_dir``; what was written.

    Raises:
        ValueError, FileNotFoundError: an argument is wrong, or an image is missing or unreadable.
        dust3r.training.checkpoint.CheckpointError: the checkpoint cannot be used.
    """
    model, name = weights.load(args.weights, args.model_name, args.alignment.shipped)
    if args.calibration is not None and not args.alignment.calibrates:
        raise ValueError(
            f"--calibration does not go with --alignment {args.alignment.name}, whose deviations "
            "are not the model's own"
        )
    calibration = weights.load_calibration(args.calibration, args.weights, args.model_name, model)
    size = args.image_size or weights.native_size(model)
    log.info("%s, images of %d pixels, on %s", name, size, args.device)
    views = load_images(
        args.images[0] if len(args.images) == 1 else args.images,
        size,
        patch_size=model.patch_size,
        masks=args.masks,
        masked=args.masked,
        verbose=not args.silent,
    )
    with progress_bar(args.silent) as progress:
        result = args.alignment.reconstruct(
            model.to(args.device),
            views,
            device=args.device,
            batch_size=args.batch_size,
            progress=progress,
        )
    if calibration is not None:
        result = result.calibrated(calibration)
    kept = result.kept(args.min_conf, args.hide / 100)
    names = [source.name for source in result.sources]
    written = list(export_all(result, args.output_dir, kept=kept).values())
    written += write_gallery(result, args.output_dir / "pictures", names, kept)
    write_overview(result, args.output_dir / "overview.png", names, kept)
    return [*written, args.output_dir / "overview.png"]


@contextmanager
def progress_bar(silent: bool) -> Iterator[Progress]:
    """A function that shows what is being done, and how much of the whole is done, as a bar."""
    shape = "{desc}{percentage:3.0f}%|{bar}| {elapsed}"
    with tqdm(total=1.0, miniters=0, bar_format=shape, disable=silent) as bar:

        def show(what: str, done: float) -> None:
            bar.set_description(what, refresh=False)
            bar.update(max(0.0, done - bar.n))

        yield show
