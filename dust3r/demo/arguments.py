"""The arguments of ``demo.py``."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dust3r.utils.arguments import count

if TYPE_CHECKING:
    from dust3r.demo.alignment import Alignment

DESCRIPTION = """\
Photographs of one scene to cameras, depth and points, with their uncertainty: on a page in the
browser, or with --images to files.
"""
MASKED = ("keep", "white", "black")

Options = Mapping[str, Mapping[str, Any]]


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


# Options that only one of the two uses has a meaning for, with the keywords of add_argument, and
# their values where not given; those of settings are the fields' own.
_PAGE: Options = {
    "server_name": {"help": "address to listen on (127.0.0.1: this machine alone)"},
    "server_port": {
        "type": _port,
        "help": "port; the first free one from 7860 if none is given",
    },
    "share": {"action": "store_true", "help": "a public address through gradio's servers"},
}
_FILES: Options = {
    "output_dir": {"type": Path, "help": "folder that the files go to"},
    "alignment": {"help": "how to join the images"},
    "scene_graph": {
        "help": "pairs to look at: complete (default), swin-3, logwin-3, oneref-0, "
        "retrieval-20-10 (sparse only), ..."
    },
    "shared_intrinsics": {"action": "store_true", "help": "one camera took all images"},
    "masks": {
        "type": Path,
        "metavar": "FOLDER",
        "help": "masks, named as the images; black: leave out",
    },
    "masked": {
        "choices": MASKED,
        "help": "what the network sees under a mask (keep: the image)",
    },
    "sky": {"action": "store_true", "help": "leave out the sky"},
    "no_clean": {
        "dest": "clean",
        "action": "store_false",
        "help": "keep points that hide what other images saw",
    },
    "calibration": {
        "metavar": "FILE",
        "help": "file of evaluate.py calibrate: tell the radius that holds 90%% of the points "
        "(dense only); a folder of such files, or auto: that of the checkpoint",
    },
    "min_conf": {"type": float, "help": "least confidence of an exported point (0)"},
    "hide": {
        "type": _percent,
        "help": "percentage of points to leave out, the least certain (0)",
    },
}
_DEFAULTS = {
    "images": None,
    "server_name": "127.0.0.1",
    "server_port": None,
    "share": False,
    "output_dir": None,
    "masks": None,
    "masked": "keep",
    "calibration": None,
    "min_conf": 0.0,
    "hide": 0.0,
}


def parse(
    methods: Sequence[type["Alignment"]], arguments: list[str] | None = None
) -> argparse.Namespace:
    """The arguments, defaults filled in; exits with 2 and a message where they do not fit.

    Its ``alignment`` is one of ``methods`` with its settings, the first where none is named.
    """
    parser = make_parser(methods)
    given = vars(parser.parse_args(arguments))
    method = {one.name: one for one in methods}[given.get("alignment", methods[0].name)]
    for options, use in _unused(methods, method, "images" in given):
        for name, keywords in options.items():
            if keywords.get("dest", name) in given:
                parser.error(f"--{name} has a meaning with {use} only")
    if "images" in given and "output_dir" not in given:
        parser.error("--images needs --output_dir, the folder that the files go to")
    if given.get("scene_graph", "").startswith("retrieval") and not method.retrieves:
        parser.error(f"--scene_graph retrieval does not go with --alignment {method.name}")
    chosen = {one.name: given.pop(one.name) for one in fields(method) if one.name in given}
    return argparse.Namespace(**_DEFAULTS | given | {"alignment": method(**chosen)})


def make_parser(methods: Sequence[type["Alignment"]]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="demo.py", description=DESCRIPTION)
    _model(parser)
    _add(parser, "page in the browser", _PAGE)
    images = {"images": {"nargs": "+", "type": Path, "help": "photographs, or one folder of them"}}
    names = [method.name for method in methods]
    named = {"help": f"{_FILES['alignment']['help']} ({names[0]})", "choices": names}
    _add(parser, "without a browser", images | _FILES | {"alignment": named})
    for method in methods:
        _add(parser, f"without a browser, with --alignment {method.name}", method.options)
    return parser


def _unused(
    methods: Sequence[type["Alignment"]], chosen: type["Alignment"], to_files: bool
) -> list[tuple[Options, str]]:
    """Options that have no meaning here, and what they have one with."""
    if not to_files:
        return [(options, "--images") for options in (_FILES, *(one.options for one in methods))]
    others = [one for one in methods if one is not chosen]
    return [(_PAGE, "a page"), *((one.options, f"--alignment {one.name}") for one in others)]


def _add(parser: argparse.ArgumentParser, title: str, options: Options) -> None:
    """Options that are there only where given."""
    group = parser.add_argument_group(title)
    for name, keywords in options.items():
        group.add_argument(f"--{name}", **{"default": argparse.SUPPRESS, **keywords})


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
    add("--image_size", type=count, help="longer side of images; by default the model's own size")
    add("--device", help="cpu, cuda, cuda:1, ...; by default the GPU where there is one")
    add("--batch_size", type=count, default=8, help="pairs at a time (%(default)s)")
    add(
        "--tmp_dir",
        type=Path,
        help="folder under which uploads and results lie until the end; the system's if none",
    )
    add("--silent", action="store_true", help="only warnings and errors")
