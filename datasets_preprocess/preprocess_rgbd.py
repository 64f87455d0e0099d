"""RGB-D recordings (7-Scenes', ScanNet's, SUN3D's folders) to the processed layout.

    python -m datasets_preprocess.preprocess_rgbd --input DIR [DIR ...] --output_dir ROOT

Each recording becomes a scene ``ROOT/<name of its folder>`` with images, depth, ``scene.npz``,
``preprocess.json`` (where it came from, how, what was counted) and ``contact_sheet.png``; the index
``ROOT/all_metadata.npz`` then covers every complete scene in ROOT. ``datasets_preprocess.rgbd``
says what the formats are, ``datasets_preprocess.layout`` what is written.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from datasets_preprocess.layout import complete_scenes, rebuild_metadata
from datasets_preprocess.rgbd.convert import Workers, convert
from datasets_preprocess.rgbd.formats import FORMATS, find_recordings
from datasets_preprocess.rgbd.recording import Recording, intrinsics_matrix
from datasets_preprocess.rgbd.report import REPORT_FILE, SHEET_FILE
from datasets_preprocess.rgbd.settings import Settings, add_choice_arguments

LOGGER = logging.getLogger(__name__)


def preprocess(
    inputs: Sequence[Path],
    root: Path,
    settings: Settings | None = None,
    *,
    format_name: str = "auto",
    num_workers: int = 1,
    overwrite: bool = False,
) -> None:
    """Write every recording in ``inputs`` as a scene of ``root``, then the metadata of all scenes.

    Scenes complete in ``root`` are skipped unless ``overwrite``. A recording that cannot be used
    does not keep the others from being written; at the end a ValueError names those that failed
    and why. Raises FileNotFoundError or ValueError at once for inputs that are no recordings.
    """
    settings, root = settings or Settings(), Path(root)
    camera = None if settings.intrinsics is None else intrinsics_matrix(*settings.intrinsics)
    recordings = find_recordings(
        [Path(path) for path in inputs],
        format_name,
        intrinsics=camera,
        frame_step=settings.frame_step,
    )
    failures: list[str] = []
    with Workers(num_workers) as workers:
        for recording in recordings:
            try:
                if overwrite or not _already_done(root, recording, settings):
                    _convert(root, recording, settings, workers)
            except ValueError as error:
                LOGGER.error("%s: %s", recording.name, error)
                failures.append(f"{recording.name}: {error}")
    if complete_scenes(root):
        index = rebuild_metadata(root)
        LOGGER.info(
            "%s: %d scene(s), %d images, %d pairs",
            root,
            len(index.scenes),
            len(index.images),
            len(index.pairs),
        )
    if failures:
        raise ValueError(
            f"{len(failures)} of {len(recordings)} recordings failed. {' '.join(failures)}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry; exits with a message for a user's error."""
    options = vars(_parser().parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options["color_intrinsics"] = _color_camera(options["color_intrinsics"])
        preprocess(
            options["input"],
            options["output_dir"],
            Settings(**{item.name: options[item.name] for item in fields(Settings)}),
            format_name=options["format"],
            num_workers=options["num_workers"],
            overwrite=options["overwrite"],
        )
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def _convert(root: Path, recording: Recording, settings: Settings, workers: Workers) -> None:
    report = convert(root, recording, settings, workers)
    LOGGER.info("%s (%s)", recording.name, recording.format)
    for line in report.lines():
        LOGGER.info("  %s", line)
    for warning in report.warnings():
        LOGGER.warning("  warning: %s", warning)
    LOGGER.info("  look at %s", root / recording.name / SHEET_FILE)


def _already_done(root: Path, recording: Recording, settings: Settings) -> bool:
    """Whether ``root`` has this scene; ValueError where its name is taken by another one."""
    if recording.name not in complete_scenes(root):
        return False
    file = root / recording.name / REPORT_FILE
    made = json.loads(file.read_text()) if file.is_file() else {}
    if made.get("source") != str(recording.folder):
        raise ValueError(
            f"{file.parent} was made from {made.get('source', 'something else')}, not from "
            f"{recording.folder}: rename "
            "the folder, take another --output_dir, or replace it with --overwrite"
        )
    if made["settings"] == json.loads(json.dumps(asdict(settings))):
        LOGGER.info("%s: already complete in %s, skipped", recording.name, root)
    else:
        LOGGER.warning(
            "%s: already complete in %s with other settings, kept; --overwrite makes it anew",
            recording.name,
            root,
        )
    return True


def _color_camera(words: Sequence[str]) -> str | tuple[float, ...]:
    if len(words) == 1:
        return words[0]
    try:
        fx, fy, cx, cy = (float(word) for word in words)
    except ValueError as error:
        raise ValueError(
            f"--color_intrinsics takes auto, same or fx fy cx cy, got {' '.join(words)}"
        ) from error
    return fx, fy, cx, cy


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="RGB-D recordings to the processed layout that ScanNetpp reads.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    defaults = Settings()

    def add(name: str, help_text: str, **options: object) -> None:
        parser.add_argument(f"--{name}", help=help_text, **options)

    def setting(name: str, help_text: str, **options: object) -> None:
        add(name, help_text, default=getattr(defaults, name), **options)

    add("input", "folders of recordings", type=Path, nargs="+", required=True)
    add("output_dir", "ROOT of the processed layout", type=Path, required=True)
    add("format", "what the folders are", choices=["auto", *FORMATS], default="auto")
    add_choice_arguments(parser, defaults)
    setting("depth_unit", "metres per step of the stored depth", type=float)
    setting(
        "intrinsics", "fx fy cx cy of the depth camera, in place of the files'", type=float, nargs=4
    )
    add(
        "color_intrinsics",
        "auto, same (as the depth camera), or fx fy cx cy of the colour image: colour is then "
        "resampled as the depth camera sees it",
        nargs="+",
        default=["auto"],
    )
    setting(
        "color_offset",
        "x y z, metres: the colour camera's centre in the depth camera's frame",
        type=float,
        nargs=3,
    )
    add("num_workers", "processes", type=int, default=2)
    add("overwrite", "make scenes anew that are complete", action="store_true")
    return parser


if __name__ == "__main__":
    main()
