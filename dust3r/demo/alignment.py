"""What the demo asks of a way to align photographs: a tab of the page, a value of --alignment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.pipeline import Progress
from dust3r.reconstruction import Reconstruction

if TYPE_CHECKING:
    from gradio.components import Component


@dataclass(frozen=True)
class Alignment(ABC):
    """A way to align photographs; an instance has its settings. Those here are of every way.

    Class attributes:
        name: value of ``--alignment``.
        title: of the tab.
        about: what it does, for the tab.
        options: command-line options of this way alone: names without dashes, and keywords of
            ``argparse``'s ``add_argument``. Their ``dest``, or name, is a field.
        retrieves: whether ``scene_graph`` may go by how alike images are, ``'retrieval'``.
        calibrates: whether deviations of depth come from the model, as a calibration takes them.
        shipped: files among the project's own weights to prefer where none are named.

    Attributes:
        scene_graph: which pairs are looked at, as for ``dust3r.image_pairs.make_pairs``.
        shared_intrinsics: one camera took all images.
        sky: mask the sky.
        clean: drop points that stand in front of what other cameras saw.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    about: ClassVar[str]
    options: ClassVar[Mapping[str, Mapping[str, Any]]]
    retrieves: ClassVar[bool] = False
    shipped: ClassVar[Sequence[str]] = ()
    calibrates: ClassVar[bool] = False

    scene_graph: str = "complete"
    shared_intrinsics: bool = False
    sky: bool = False
    clean: bool = True

    @classmethod
    def obstacle(cls, model: AsymmetricCroCo3DStereo) -> str | None:
        """Why it does not go with this model, and which weights to take; None where it does."""
        return None

    @classmethod
    @abstractmethod
    def components(cls, model: AsymmetricCroCo3DStereo) -> dict[str, Component]:
        """The tab's settings, made in the gradio context that is open, by name of their field.

        The parts of ``dust3r.demo.components.pairs`` stand for ``scene_graph``.
        """

    @abstractmethod
    def reconstruct(
        self,
        model: AsymmetricCroCo3DStereo,
        views: Sequence[dict[str, Any]],
        *,
        device: str | torch.device | None = None,
        batch_size: int = 8,
        cache: Path | None = None,
        progress: Progress | None = None,
    ) -> Reconstruction:
        """Cameras, depth and points of the views of ``load_images``.

        Args:
            device: of the network; the model's own where None.
            batch_size: pairs at a time.
            cache: folder for what later runs on the same images may use again; None for none.
            progress: called with what is being done and the fraction of the whole that is done.

        Raises:
            ValueError: with a message for the person who asked.
        """
