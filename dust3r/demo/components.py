"""Parts of the page that the tabs of several alignments have, and what their values mean."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr
from gradio.components import Component

from dust3r.demo.alignment import Alignment

GRAPHS = [
    ("every pair", "complete"),
    ("neighbours in a sequence", "swin"),
    ("near and far in a sequence", "logwin"),
    ("one with all others", "oneref"),
]
RETRIEVAL = ("most alike images", "retrieval")
WITH_WINDOW = ("swin", "logwin")


@dataclass(frozen=True)
class Pairs:
    """Which pairs to look at, as chosen on the page.

    ``window`` and ``closed`` (the last images see the first) belong to sequences, ``reference``
    (from 1) to one image with all others, ``keys`` and ``alike`` to retrieval.
    """

    graph: str
    window: int
    closed: bool
    reference: int
    keys: int
    alike: int

    @property
    def scene_graph(self) -> str:
        if self.graph in WITH_WINDOW:
            return f"{self.graph}-{int(self.window)}{'' if self.closed else '-noncyclic'}"
        if self.graph == "oneref":
            return f"oneref-{int(self.reference) - 1}"
        if self.graph == "retrieval":
            return f"retrieval-{int(self.keys)}-{int(self.alike)}"
        return self.graph


def settings(method: type[Alignment], values: Mapping[str, Any]) -> Alignment:
    """An alignment with the values of its tab's components, by their names."""
    parts = {field.name for field in fields(Pairs)}
    pairs = Pairs(**{name: values[name] for name in parts})
    others = {name: value for name, value in values.items() if name not in parts}
    return method(scene_graph=pairs.scene_graph, **others)


def pairs(method: type[Alignment]) -> dict[str, Component]:
    """Components of the fields of ``Pairs``, with element names such as ``window_dense``, and of
    ``shared_intrinsics``."""
    tab = method.name
    graph = gr.Dropdown(
        [*GRAPHS, RETRIEVAL] if method.retrieves else GRAPHS,
        value="complete",
        label="Pairs to look at",
        elem_id=f"graph_{tab}",
    )

    def slider(name: str, label: str, least: int, most: int, value: int) -> gr.Slider:
        return gr.Slider(
            least, most, value, step=1, label=label, visible=False, elem_id=f"{name}_{tab}"
        )

    window = slider("window", "Window", 1, 10, 3)
    closed = gr.Checkbox(
        label="The last images see the first", visible=False, elem_id=f"closed_{tab}"
    )
    reference = slider("reference", "Reference image (number)", 1, 2, 1)
    keys = slider("keys", "Key images, each with each other", 1, 40, 10)
    alike = slider("alike", "Most alike images of each", 1, 20, 5)

    def choose(kind: str) -> list[dict[str, Any]]:
        of = WITH_WINDOW, WITH_WINDOW, ("oneref",), ("retrieval",), ("retrieval",)
        return [gr.update(visible=kind in kinds) for kinds in of]

    graph.change(choose, graph, [window, closed, reference, keys, alike], api_visibility="private")
    return {
        "graph": graph,
        "window": window,
        "closed": closed,
        "reference": reference,
        "keys": keys,
        "alike": alike,
        "shared_intrinsics": gr.Checkbox(label="One camera took all (shared intrinsics)"),
    }


def common() -> dict[str, Component]:
    """Components of what to leave out, whatever the alignment."""
    return {
        "sky": gr.Checkbox(label="Leave out the sky"),
        "clean": gr.Checkbox(True, label="Leave out what hides what other images saw"),
    }
