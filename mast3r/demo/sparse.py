"""Sparse alignment in the demo: matches of the pairs hold the images together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dust3r.demo.alignment import Alignment
from dust3r.demo.weights import FOLDER
from dust3r.model import AsymmetricCroCo3DStereo
from dust3r.pipeline import Progress
from dust3r.reconstruction import Reconstruction
from mast3r.cloud_opt.cache import CacheError
from mast3r.cloud_opt.dense import DEPTHS
from mast3r.matching import need_descriptors
from mast3r.pipeline import reconstruct_sparse

if TYPE_CHECKING:
    from gradio.components import Component

PUBLISHED = "MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric"

_DEPTH_TITLES = {
    "network": "of the network, corrected",
    "triangulated": "triangulated from matches",
    "tsdf": "fused with its neighbours (TSDF)",
}


@dataclass(frozen=True)
class SparseAlignment(Alignment):
    """Fields as of ``mast3r.pipeline.reconstruct_sparse``; ``cache_dir`` is its ``cache_path``."""

    name = "sparse"
    title = "Sparse: matches"
    about = (
        "Joins images by the pixels that match. What the network says is kept for a while: the "
        "next run on the same images, with other settings, starts from it."
    )
    retrieves = True
    shipped = ("rooms_small_mast3r.safetensors",)
    options = {
        "depth": {
            "choices": DEPTHS,
            "help": "depth of the maps: of the network (default), from matches alone, or fused",
        },
        "matching_conf_thr": {"type": float, "help": "least confidence of a match (0)"},
        "no_opt_depth": {
            "dest": "opt_depth",
            "action": "store_false",
            "help": "refine cameras alone, not depth",
        },
        "cache_dir": {
            "type": Path,
            "metavar": "FOLDER",
            "help": "keep what the network says of pairs, for later runs with other settings",
        },
    }

    depth: str = "network"
    opt_depth: bool = True
    matching_conf_thr: float = 0.0
    cache_dir: Path | None = None

    @classmethod
    def obstacle(cls, model: AsymmetricCroCo3DStereo) -> str | None:
        try:
            need_descriptors(model)
        except ValueError as error:
            weights = [FOLDER / name for name in cls.shipped if (FOLDER / name).is_file()]
            named = [f"- `--weights {path.parent.name}/{path.name}`" for path in weights]
            named += [f"- `--model_name {PUBLISHED}`", "- `--weights FILE` with your own"]
            why = str(error)
            why = f"{why[0].upper()}{why[1:]}. Start the demo with one of these:"
            return "\n".join([why, "", *named])
        return None

    @classmethod
    def components(cls, model: AsymmetricCroCo3DStereo) -> dict[str, Component]:
        # Gradio reads its folders from the environment on import.
        import gradio as gr

        from dust3r.demo.components import common, pairs

        chosen = pairs(cls)
        chosen["depth"] = gr.Dropdown(
            [(_DEPTH_TITLES[kind], kind) for kind in DEPTHS],
            value=cls.depth,
            label="Depth",
            elem_id="depth",
        )
        with gr.Accordion("More", open=False):
            chosen["opt_depth"] = gr.Checkbox(
                cls.opt_depth, label="Refine depth together with cameras"
            )
            chosen["matching_conf_thr"] = gr.Slider(
                0, 20, cls.matching_conf_thr, step=0.1, label="Least confidence of a match"
            )
            chosen |= common()
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
        try:
            return reconstruct_sparse(
                model,
                views,
                scene_graph=self.scene_graph,
                cache_path=self.cache_dir or cache,
                device=device,
                batch_size=batch_size,
                matching_conf_thr=self.matching_conf_thr,
                shared_intrinsics=self.shared_intrinsics,
                opt_depth=self.opt_depth,
                depth=self.depth,
                clean=self.clean,
                sky=self.sky,
                verbose=False,
                progress=progress,
            )
        except CacheError as error:
            raise ValueError(str(error)) from error
