"""What the page does when asked: reconstruct, show, export."""

import functools
import html
import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch

from dust3r.demo.alignment import Alignment
from dust3r.demo.pictures import write_gallery
from dust3r.demo.storage import Session, Upload, Workspace, in_their_words
from dust3r.export import (
    write_colmap,
    write_glb,
    write_maps,
    write_nerfstudio,
    write_ply,
    write_zip,
)
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.pipeline import Progress
from dust3r.reconstruction import Reconstruction
from dust3r.utils.image import load_images

log = logging.getLogger(__name__)

USER_ERRORS = (ValueError, FileNotFoundError)
ROOM = Path(__file__).parents[2] / "docs" / "images" / "example_room"

_UNEXPECTED = "Something went wrong on the server; its log says more."
_NO_MEMORY = "There is not enough memory for this: give fewer images, or another scene graph."
_NOTHING = "There is no reconstruction yet, or it has expired: press Reconstruct."
_SCENES_KEPT = 2


@dataclass(frozen=True)
class Look:
    """How to show a reconstruction, as chosen on the page; ``hide`` in percent."""

    min_confidence: float
    hide: float
    camera_size: float
    form: str
    colour: str


@dataclass(frozen=True)
class Result:
    """A reconstruction with its folders and what its images are called: one session's state."""

    session: Session
    uploads: tuple[Upload, ...]
    reconstruction: Reconstruction

    def kept(self, look: Look) -> list[np.ndarray]:
        return self.reconstruction.kept(look.min_confidence, look.hide / 100)

    def largest_confidence(self) -> float:
        """Rounded up to a tenth, but for the largest percent, which may be far from the rest."""
        confidences = [confidence.ravel() for confidence in self.reconstruction.confidences]
        return math.ceil(10 * float(np.percentile(np.concatenate(confidences), 99))) / 10

    def close(self) -> None:
        self.session.close()


def speaking(function: Callable) -> Callable:
    """Errors become messages in the page: a user's with its text, others without their details."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except USER_ERRORS as error:
            log.info("%s", error)
            message = html.escape(in_their_words(str(error), ()), quote=False)
        except (torch.OutOfMemoryError, MemoryError):
            log.exception("out of memory")
            message = _NO_MEMORY
        except Exception:
            log.exception("in %s", function.__name__)
            message = _UNEXPECTED
        raise gr.Error(message, duration=None, print_exception=False)

    return guarded


class Events:
    """The page's functions over one model; safe to call from several threads, but for
    ``reconstruct``, which wants one at a time."""

    def __init__(
        self,
        model: AsymmetricCroCo3DStereo,
        name: str,
        image_size: int,
        batch_size: int,
        workspace: Workspace,
    ):
        self.model = model
        self.name = name
        self.image_size = image_size
        self.batch_size = batch_size
        self.workspace = workspace

    def example(self) -> list[str]:
        """Images of a room that the project rendered.

        They are frames 0, 2 and 4 of ``make_rooms --seed 31 --first_scene 2 --num_scenes 1
        --images_per_scene 5 --resolution 448 336 --fov 68 76``.
        """
        folder = self.workspace.work / "example"
        if not folder.exists():
            shutil.copytree(ROOM, folder)
        return [str(path) for path in sorted(folder.iterdir())]

    def reconstruct(
        self,
        images: Sequence[str],
        masks: Sequence[str],
        masked: str,
        alignment: Alignment,
        progress: Progress,
    ) -> Result:
        """Raises ValueError with the images named as their sender does.

        Args:
            images, masks: paths of uploads.
            masked: what the network sees under a mask, as of ``load_images``.
        """
        session, uploads, given = self.workspace.new_session(), [], {}
        try:
            uploads = self.workspace.take_images(images, session.work / "images")
            given = self.workspace.take_masks(masks, uploads, session.work / "masks")
            views = load_images(
                [upload.path for upload in uploads],
                self.image_size,
                patch_size=self.model.patch_size,
                masks={name: mask.path for name, mask in given.items()},
                masked=masked,
                verbose=False,
            )
            reconstruction = alignment.reconstruct(
                self.model,
                views,
                batch_size=self.batch_size,
                cache=self.workspace.cache,
                progress=progress,
            )
        except USER_ERRORS as error:
            session.close()
            named = [*given.values(), *uploads]
            raise ValueError(in_their_words(str(error), named)) from error
        except BaseException:
            session.close()
            raise
        finally:
            self.workspace.trim_cache()
        told = tuple(in_their_words(note, uploads) for note in reconstruction.notes)
        return Result(session, tuple(uploads), replace(reconstruction, notes=told))

    def scene(self, result: Result | None, look: Look) -> str:
        """The GLB to show, a new file each time, as browsers keep what has one address."""
        result = _present(result)
        folder = result.session.served
        made = sorted(folder.glob("scene_*.glb"))
        number = int(made[-1].stem[-6:]) + 1 if made else 0
        path = folder / f"scene_{number:06d}.glb"
        self._write_scene(result, look, path)
        for old in made[:-_SCENES_KEPT]:
            old.unlink(missing_ok=True)
        return str(path)

    def pictures(self, result: Result | None) -> list[tuple[str, str]]:
        """The gallery: paths of pictures, and what the images are called."""
        result = _present(result)
        names = [self._name(result, number) for number in range(len(result.reconstruction))]
        paths = write_gallery(result.reconstruction, result.session.served / "pictures", names)
        return [(str(path), name) for path, name in zip(paths, names, strict=True)]

    def exports(self, result: Result | None, look: Look) -> list[str]:
        """Every export as one file, folders as ZIP, and ``names.json``: which image is whose."""
        result = _present(result)
        reconstruction, kept = result.reconstruction, result.kept(look)
        served, made = result.session.served / "files", result.session.work / "export"
        for folder in (served, made):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        write_colmap(reconstruction, made / "colmap", kept=kept)
        write_nerfstudio(reconstruction, made / "nerfstudio", kept=kept)
        write_maps(reconstruction, made / "maps")
        files = [
            write_ply(reconstruction, served / "points.ply", kept=kept),
            self._write_scene(result, look, served / "scene.glb"),
            *(
                write_zip(folder, served / f"{folder.name}.zip")
                for folder in sorted(made.iterdir())
            ),
            served / "names.json",
        ]
        shutil.rmtree(made)
        names = {upload.path.name: upload.name for upload in result.uploads}
        files[-1].write_text(json.dumps(names, indent=1, ensure_ascii=False), encoding="utf-8")
        return [str(path) for path in files]

    def report(self, result: Result | None, look: Look) -> str:
        """What is shown, and what the reconstruction has to say, as Markdown."""
        result = _present(result)
        known = sum(int(valid.sum()) for valid in result.reconstruction.valid)
        shown = sum(int(keep.sum()) for keep in result.kept(look))
        lines = [f"{len(result.reconstruction)} images, {shown:,} of {known:,} points shown."]
        lines += [f"- {html.escape(note)}" for note in result.reconstruction.notes]
        return "\n".join(lines)

    @staticmethod
    def _write_scene(result: Result, look: Look, path: Path) -> Path:
        return write_glb(
            result.reconstruction,
            path,
            kept=result.kept(look),
            as_mesh=look.form == "mesh",
            colour=look.colour,
            camera_size=look.camera_size,
        )

    @staticmethod
    def _name(result: Result, number: int) -> str:
        source = result.reconstruction.sources[number]
        names = {upload.path.name: upload.name for upload in result.uploads}
        return names.get(source.name, source.name)


def _present(result: Result | None) -> Result:
    if result is None:
        raise ValueError(_NOTHING)
    return result
