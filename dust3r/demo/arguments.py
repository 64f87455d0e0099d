"""The arguments of ``demo.py``."""

import argparse
from pathlib import Path

DESCRIPTION = """\
Photographs of one scene to cameras, depth and points, with their uncertainty: on a page in the
browser, or with --images to files.
"""
MASKED = ("keep", "white", "black")
WEIGHTS = ("confidence", "uncertainty")

# Options that only one of the two uses has a meaning for, and their values where not given.
_OF_PAGE = {"server_name": None, "server_port": None, "share": False}
_OF_FILES = {
    "output_dir": None,
    "scene_graph": None,
    "niter": None,
    "shared_intrinsics": False,
    "weights_by": None,
    "masks": None,
    "masked": None,
    "sky": False,
    "no_clean": False,
    "min_conf": None,
    "hide": None,
}
_DEFAULTS = {
    "server_name": "127.0.0.1",
    "scene_graph": "complete",
    "niter": 300,
    "weights_by": "confidence",
    "masked": "keep",
    "min_conf": 0.0,
    "hide": 0.0,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments, defaults filled in; exits with 2 and a message where they do not fit."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    unused, used_by = (_OF_PAGE, "a page") if args.images else (_OF_FILES, "--images")
    for name, default in unused.items():
        if getattr(args, name) != default:
            parser.error(f"--{name} has a meaning with {used_by} only")
    if args.images and args.output_dir is None:
        parser.error("--images needs --output_dir, the folder that the files go to")
    for name, default in _DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    return args


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="demo.py", description=DESCRIPTION)
    _model(parser)
    _page(parser.add_argument_group("page in the browser"))
    _files(parser.add_argument_group("without a browser"))
    return parser


def _model(parser: argparse.ArgumentParser) -> None:
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="checkpoint, .pth or .safetensors; the project's own small model if none is named",
    )
    weights.add_argument(
        "--model_name",
        metavar="NAME",
        help="repository on the Hugging Face hub, without its owner for those of naver",
    )
    add = parser.add_argument
    add("--image_size", type=_count, help="longer side of images; by default the model's own size")
    add("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")
    add("--batch_size", type=_count, default=8, help="pairs at a time (%(default)s)")
    add(
        "--tmp_dir",
        type=Path,
        help="folder under which uploads and results lie until the end; the system's if none",
    )
    add("--silent", action="store_true", help="only warnings and errors")


def _page(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--server_name", help="address to listen on (127.0.0.1: this machine alone)")
    add("--server_port", type=_port, help="port; the first free one from 7860 if none is given")
    add("--share", action="store_true", help="a public address through gradio's servers")


def _files(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--images", nargs="+", type=Path, help="photographs, or one folder of them")
    add("--output_dir", type=Path, help="folder that the files go to")
    add(
        "--scene_graph",
        help="pairs to look at: complete (default), swin-3, logwin-3, oneref-0, ...",
    )
    add("--niter", type=_count, help="most iterations of the alignment (300)")
    add("--shared_intrinsics", action="store_true", help="one camera took all images")
    add("--weights_by", choices=WEIGHTS, help="what a point counts in the alignment (confidence)")
    add("--masks", type=Path, metavar="FOLDER", help="masks, named as the images; black: leave out")
    add("--masked", choices=MASKED, help="what the network sees under a mask (keep: the image)")
    add("--sky", action="store_true", help="leave out the sky")
    add("--no_clean", action="store_true", help="keep points that hide what other images saw")
    add("--keep_all", action="store_true", help="keep images that share nothing with the others")
    add("--min_conf", type=float, help="least confidence of an exported point (0)")
    add("--hide", type=_percent, help="percentage of points to leave out, the least certain (0)")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: give a number from 1 to 65535")
    return number


def _percent(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text} is no percentage: give a number from 0 to 100")
    return number
