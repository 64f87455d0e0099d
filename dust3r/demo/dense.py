"""Dense alignment in the demo: every pixel of every pair counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dust3r.demo.alignment import Alignment
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.pipeline import Progress, reconstruct
from dust3r.reconstruction import Reconstruction
from dust3r.utils.arguments import count

if TYPE_CHECKING:
    from gradio.components import Component

WEIGHTS = ("confidence", "uncertainty")


@dataclass(frozen=True)
class DenseAlignment(Alignment):
    """Fields as of ``dust3r.pipeline.reconstruct``, whose ``weights`` is ``weights_by`` here."""

    name = "dense"
    title = "Dense: all pixels"
    calibrates = True
    about = "Joins images by what the network says of every pixel of their pairs."
    options = {
        "niter": {"type": count, "help": "most iterations of the alignment (300)"},
        "weights_by": {
            "choices": WEIGHTS,
            "help": "what a point counts in the alignment (confidence)",
        },
        "keep_all": {
            "dest": "check_overlap",
            "action": "store_false",
            "help": "keep images that share nothing with the others",
        },
    }

    niter: int = 300
    weights_by: str = "confidence"
    check_overlap: bool = True

    @classmethod
    def components(cls, model: AsymmetricCroCo3DStereo) -> dict[str, Component]:
        # Gradio reads its folders from the environment on import.
        import gradio as gr

        from dust3r.demo.components import common, pairs

        chosen = pairs(cls)
        with gr.Accordion("More", open=False):
            chosen["niter"] = gr.Slider(
                10, 1000, cls.niter, step=10, label="Iterations of the alignment"
            )
            chosen["weights_by"] = gr.Radio(
                list(WEIGHTS),
                value=cls.weights_by,
                label="Weigh points by",
                info=None if model.states_variance else "This model states no variance.",
                interactive=model.states_variance,
            )
            chosen |= common()
            chosen["check_overlap"] = gr.Checkbox(
                cls.check_overlap, label="Leave out images that share nothing with the others"
            )
        return chosen

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
        return reconstruct(
            model,
            views,
            scene_graph=self.scene_graph,
            device=device,
            batch_size=batch_size,
            niter=int(self.niter),
            shared_intrinsics=self.shared_intrinsics,
            weights=self.weights_by,
            clean=self.clean,
            sky=self.sky,
            check_overlap=self.check_overlap,
            verbose=False,
            progress=progress,
        )
