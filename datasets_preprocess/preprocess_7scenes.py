"""7-Scenes to the processed layout, with its official split.

    python -m datasets_preprocess.preprocess_7scenes --sevenscenes_dir RAW --output_dir ROOT

RAW holds the scenes as they are unpacked (chess, fire, heads, office, pumpkin, redkitchen, stairs),
each with ``TrainSplit.txt`` and ``TestSplit.txt`` (lines ``sequence1``) and folders ``seq-01`` of
``frame-XXXXXX.{color.png,depth.png,pose.txt}``. Documented on the data set's page at Microsoft
Research (Shotton et al., "Scene coordinate regression forests", CVPR 2013), and in
``datasets_preprocess.rgbd.formats``. Every sequence becomes a scene ``<scene>_seq-01``. Colour is
of another camera than depth; see ``datasets_preprocess.rgbd.frames`` for what is done about it.
"""

import argparse
import re
import sys
from pathlib import Path

from datasets_preprocess.rgbd.formats import FORMATS
from datasets_preprocess.rgbd.recording import Recording
from datasets_preprocess.rgbd.scenes import (
    Source,
    preprocess_sources,
    require_folder,
    scene_parser,
)
from datasets_preprocess.rgbd.settings import Settings
from datasets_preprocess.scenes import run_command
from dust3r.datasets.sevenscenes import SevenScenes

_SPLIT_FILES = {"train": "TrainSplit.txt", "test": "TestSplit.txt"}


def main(argv: list[str] | None = None) -> int:
    """Command line; see ``--help``."""
    parser = scene_parser("7-Scenes to the processed layout, which SevenScenes reads.")
    parser.add_argument(
        "--sevenscenes_dir", type=Path, required=True, help="folder of the scenes, unpacked"
    )
    return run_command(_run, parser, argv)


def find_sequences(root: Path) -> list[Source]:
    """Every sequence of the scenes in ``root`` with its split; those of no list have none.

    Raises ValueError where a list names a sequence that is not unpacked, or there is no scene.
    """
    sources = []
    for scene in sorted({path.parent for path in root.glob("*/*Split.txt")}):
        splits = {}
        for split, name in _SPLIT_FILES.items():
            if (scene / name).is_file():
                numbers = re.findall(r"\d+", (scene / name).read_text())
                splits |= {f"seq-{int(number):02d}": split for number in numbers}
        absent = [sequence for sequence in splits if not (scene / sequence).is_dir()]
        if absent:
            raise ValueError(
                f"{scene} has no {', '.join(sorted(absent))}, which its split names; unpack the "
                "sequences' zip files inside the scene's folder"
            )
        sequences = sorted(path for path in scene.glob("seq-*") if path.is_dir())
        sources += [Source(f"{scene.name}_{p.name}", p, splits.get(p.name, "")) for p in sequences]
    if not sources:
        raise ValueError(
            f"{root}: no scene there, a folder with TrainSplit.txt, TestSplit.txt and seq-01"
        )
    return sources


def _run(options: argparse.Namespace) -> str:
    root = require_folder(options.sevenscenes_dir, "--sevenscenes_dir", "chess, fire, heads, ...")
    return preprocess_sources(find_sequences(root), _read, options, SevenScenes)


def _read(source: Source, settings: Settings) -> Recording:
    return FORMATS["7scenes"].read(source.folder, source.name, None, settings.frame_step)


if __name__ == "__main__":
    sys.exit(main())
