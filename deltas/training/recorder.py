"""What a training run of DELTAS shows: depth of the first samples of a batch, in TensorBoard."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from deltas.densify import sparse_depth
from deltas.model import DeltasPrediction
from dust3r.training.logging import PANEL_SAMPLES, Recorder
from dust3r.utils.image import rgb
from dust3r.utils.plots import Block, Colours, Map, sheet

_PANEL_INCHES = 1.9


class DeltasRecorder(Recorder):
    """Takes over a run's log and TensorBoard; its panels show sparse and dense depth.

    Args:
        recorder: the one that the run had.
    """

    def __init__(self, recorder: Recorder):
        # One board and one log: a second writer would leave a second file of events.
        vars(self).update(vars(recorder))

    def panels(
        self,
        inputs: tuple[Mapping[str, Any]],
        predictions: tuple[DeltasPrediction],
        step: int,
        group: str,
    ) -> None:
        """Image, truth, triangulated and dense depth, and its error, of the first samples."""
        if self._board is None:
            return
        samples = range(min(PANEL_SAMPLES, len(inputs[0]["img"])))
        figure = batch_figure(inputs[0], predictions[0], samples, f"batch {step}")
        self._board.add_figure(f"{group}/depth", figure, step)


def batch_figure(
    batch: Mapping[str, Any], prediction: DeltasPrediction, samples: range, title: str = ""
) -> Figure:
    """A row for each of ``samples`` of a batch of ``Sequences``; see ``DeltasRecorder.panels``."""
    size = tuple(batch["img"].shape[-2:])
    sparse = sparse_depth(prediction.points, prediction.z, prediction.valid, size)
    sigma = None if prediction.evidence is None else prediction.evidence.variance.sqrt()
    blocks = []
    for index in samples:
        truth, sparse_z, dense = (
            _array(x) for x in (batch["depthmap"][index, 0], sparse[index, 0],
                                prediction.depth[0][index, 0])
        )  # fmt: skip
        truth = np.where(truth > 0, truth, np.nan)
        depths, errors = Colours.linear([truth]), Colours.from_zero([np.abs(dense - truth)])
        maps = [
            Map("anchor", rgb(batch["img"][index, 0].detach().cpu())),
            Map("truth (m)", truth, depths),
            Map("triangulated", _thick(sparse_z), depths),
            Map("dense", dense, depths),
            Map("error (m)", np.abs(dense - truth), errors),
        ]
        if sigma is not None:
            maps.append(Map("stated sigma (m)", _array(sigma[index, 0]), errors))
        panel = (_PANEL_INCHES * size[1] / size[0], _PANEL_INCHES)
        blocks.append(Block([maps], panel, str(batch["label"][0][index])))
    return sheet(blocks, title)


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().float().cpu().numpy()


def _thick(sparse: np.ndarray) -> np.ndarray:
    """Points as squares of 5 pixels, which can be seen; NaN elsewhere."""
    padded = np.pad(sparse, 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5)).reshape(*sparse.shape, 25)
    largest = windows.max(-1)
    return np.where(largest > 0, largest, np.nan)
