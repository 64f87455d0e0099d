"""What a training run of DELTAS shows: depth of the first samples of a batch, in TensorBoard."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from deltas.evaluation.figures import depth_maps
from deltas.evaluation.measure import only
from deltas.model import DeltasPrediction
from dust3r.training.logging import PANEL_SAMPLES, Recorder
from dust3r.utils.image import rgb
from dust3r.utils.plots import Block, Map, sheet

_PANEL_INCHES = 1.9


class DeltasRecorder(Recorder):
    """Takes over a run's log and TensorBoard; its panels show sparse and dense depth.

    Args:
        recorder: the one that the run had.
        depth_range: of the true depths that count, metres.
    """

    def __init__(self, recorder: Recorder, depth_range: tuple[float, float]):
        # One board and one log: a second writer would leave a second file of events.
        vars(self).update(vars(recorder))
        self._depth_range = depth_range

    def panels(
        self,
        inputs: tuple[Mapping[str, Any]],
        predictions: tuple[DeltasPrediction],
        step: int,
        group: str,
    ) -> None:
        """Image, triangulated, dense and true depth, and its error, of the first samples."""
        if self._board is None:
            return
        samples = range(min(PANEL_SAMPLES, len(inputs[0]["img"])))
        title = f"batch {step}"
        figure = batch_figure(inputs[0], predictions[0], samples, self._depth_range, title)
        self._board.add_figure(f"{group}/depth", figure, step)


def batch_figure(
    batch: Mapping[str, Any],
    prediction: DeltasPrediction,
    samples: range,
    depth_range: tuple[float, float],
    title: str = "",
) -> Figure:
    """A row for each of ``samples`` of a batch of ``Sequences``; see ``DeltasRecorder.panels``."""
    blocks = []
    for index in samples:
        alone, said = only(index, batch, prediction)
        image = rgb(alone["img"][0, 0])
        height, width = image.shape[:2]
        maps = [Map("anchor", image), *depth_maps(alone, said, depth_range)]
        panel = (_PANEL_INCHES * width / height, _PANEL_INCHES)
        blocks.append(Block([maps], panel, str(alone["label"][0][0])))
    return sheet(blocks, title)
