"""The page: its parts, what shows when, and which function each event calls."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr
from gradio_client.utils import is_http_url_like

from dust3r.demo.arguments import MASKED
from dust3r.demo.events import Events, Look, Result, Settings, speaking

GRAPHS = [
    ("every pair", "complete"),
    ("neighbours in a sequence", "swin"),
    ("near and far in a sequence", "logwin"),
    ("one with all others", "oneref"),
]
COLOURS = [("image", "rgb"), ("depth", "depth"), ("uncertainty", "uncertainty")]
WITH_WINDOW = ("swin", "logwin")
SUFFIXES = ["image", ".heic", ".heif", ".avif"]

# Seconds. What a closed tab had goes after an hour, by gradio's own clock.
EXPIRY, SWEEP = 6 * 3600, 600

CSS = """
.gradio-container { max-width: 1360px !important; margin: 0 auto !important; }
#title h1 { margin-bottom: 2px; }
#title p { margin: 0; opacity: 0.75; }
#report { padding: 0 4px; }
#report ul { margin: 4px 0; }
#scene canvas { outline: none; }
#gallery .caption-label { display: none; }
#gallery .grid-container { grid-template-rows: none; grid-auto-rows: auto; }
#gallery .thumbnail-lg, #gallery .thumbnail-item { aspect-ratio: auto; height: auto; }
"""


# The viewer prefers WebGPU wherever a browser knows its name, and stays blank where that has no
# adapter behind it, as on many Linux machines: WebGL 2 is everywhere, and as good for points.
HEAD = "<script>delete Navigator.prototype.gpu;</script>"


def theme() -> gr.themes.Base:
    """Fonts that every system has: the page asks no other server for anything."""
    return gr.themes.Soft(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="*body_text_color",
        block_label_shadow="none",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_text_color="*body_text_color",
        block_title_padding="0",
    )


def build(events: Events) -> gr.Blocks:
    """The page over ``events``, to be launched."""
    page = gr.Blocks(
        title="Reconstruction with uncertainty",
        analytics_enabled=False,
        delete_cache=(SWEEP, EXPIRY),
    )

    @speaking
    def export(result: Result | None, *looks: Any) -> list[str]:
        return events.exports(result, Look(*looks))

    with page:
        result = gr.State(None, time_to_live=EXPIRY, delete_callback=_forget)
        gr.Markdown(_heading(events), elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=330):
                images = gr.File(
                    label="Photographs of one scene",
                    file_count="multiple",
                    file_types=SUFFIXES,
                    height=200,
                    elem_id="images",
                )
                example = gr.Button("Use the example room", size="sm", elem_id="example")
                settings = _settings(events, images)
                run = gr.Button("Reconstruct", variant="primary", elem_id="run")
            with gr.Column(scale=2, min_width=480):
                scene = gr.Model3D(
                    label="Reconstruction: drag to turn, scroll to zoom",
                    height=500,
                    clear_color=(0.0, 0.0, 0.0, 0.0),
                    interactive=False,
                    elem_id="scene",
                )
                report = gr.Markdown(elem_id="report")
                look = _look()
        with gr.Tabs():
            with gr.Tab(_maps_of(events)):
                gr.Markdown("Grey is what has no point: masked, sky, or left out.")
                gallery = gr.Gallery(
                    show_label=False,
                    columns=1,
                    height="auto",
                    object_fit="contain",
                    buttons=["download", "fullscreen"],
                    format="png",
                    elem_id="gallery",
                )
            with gr.Tab("Downloads", elem_id="downloads_tab"):
                gr.Markdown("The points that are shown, cameras and maps, in files.")
                prepare = gr.Button("Prepare files", elem_id="prepare")
                files = gr.File(
                    label="Files", file_count="multiple", interactive=False, elem_id="files"
                )
        _only_uploads(images, settings["masks"])
        _connect(events, result, images, settings, look, run, scene, report, gallery, files)
        example.click(speaking(events.example), None, images, api_visibility="private")
        prepare.click(
            export,
            [result, *look.values()],
            files,
            concurrency_limit=1,
            api_visibility="private",
        )
    return page


def _heading(events: Events) -> str:
    device = next(events.model.parameters()).device
    says = "states" if events.model.states_variance else "does not state"
    return (
        "# Photographs to 3-D, and how far to trust it\n"
        f"Model {events.name}, images of {events.image_size} pixels, on {device}; it {says} the "
        "variance of its depth."
    )


def _maps_of(events: Events) -> str:
    deviation = ", standard deviation" if events.model.states_variance else ""
    return f"Depth, confidence{deviation}"


def _settings(events: Events, images: gr.File) -> dict[str, Any]:
    """Components in the order of ``Settings``, and ``masks``."""
    graph = gr.Dropdown(GRAPHS, value="complete", label="Pairs to look at", elem_id="graph")
    window = gr.Slider(1, 10, 3, step=1, label="Window", visible=False, elem_id="window")
    closed = gr.Checkbox(label="The last images see the first", visible=False, elem_id="closed")
    reference = gr.Slider(
        1, 2, 1, step=1, label="Reference image (number)", visible=False, elem_id="reference"
    )
    shared = gr.Checkbox(label="One camera took all (shared intrinsics)")
    with gr.Accordion("More", open=False):
        niter = gr.Slider(10, 1000, 300, step=10, label="Iterations of the alignment")
        has_variance = events.model.states_variance
        weights = gr.Radio(
            ["confidence", "uncertainty"],
            value="confidence",
            label="Weigh points by",
            info=None if has_variance else "This model states no variance.",
            interactive=has_variance,
        )
        sky = gr.Checkbox(label="Leave out the sky")
        clean = gr.Checkbox(True, label="Leave out what hides what other images saw")
        overlap = gr.Checkbox(True, label="Leave out images that share nothing with the others")
        gr.Markdown("Masks are named as their images; what is black is left out.")
        masks = gr.File(
            label="Masks",
            file_count="multiple",
            file_types=SUFFIXES,
            height=130,
            elem_id="masks",
        )
        masked = gr.Radio(list(MASKED), value="keep", label="What the network sees under a mask")

    def choose(kind: str) -> tuple:
        in_sequence = gr.update(visible=kind in WITH_WINDOW)
        return in_sequence, in_sequence, gr.update(visible=kind == "oneref")

    def count(paths: list[str] | None) -> dict[str, Any]:
        return gr.update(maximum=max(2, len(paths or ())), value=1)

    graph.change(choose, graph, [window, closed, reference], api_visibility="private")
    images.change(count, images, reference, api_visibility="private")
    return {
        "graph": graph,
        "window": window,
        "closed": closed,
        "reference": reference,
        "niter": niter,
        "shared_intrinsics": shared,
        "weights": weights,
        "masked": masked,
        "sky": sky,
        "clean": clean,
        "check_overlap": overlap,
        "masks": masks,
    }


def _look() -> dict[str, Any]:
    """Components in the order of ``Look``."""
    with gr.Row():
        hide = gr.Slider(0, 95, 10, step=1, label="Hide uncertain (%)", buttons=[], elem_id="hide")
        confidence = gr.Slider(
            0, 10, 0, step=0.05, label="Least confidence", buttons=[], elem_id="confidence"
        )
        camera = gr.Slider(
            0, 0.3, 0.05, step=0.01, label="Camera size", buttons=[], elem_id="camera"
        )
    with gr.Row():
        form = gr.Radio(["points", "mesh"], value="points", label="Show as", elem_id="form")
        colour = gr.Radio(COLOURS, value="rgb", label="Colour", elem_id="colour")
    return {
        "min_confidence": confidence,
        "hide": hide,
        "camera_size": camera,
        "form": form,
        "colour": colour,
    }


def _connect(
    events: Events,
    result: gr.State,
    images: gr.File,
    settings: dict[str, Any],
    look: dict[str, Any],
    run: gr.Button,
    scene: gr.Model3D,
    report: gr.Markdown,
    gallery: gr.Gallery,
    files: gr.File,
) -> None:
    chosen = {name: part for name, part in settings.items() if name != "masks"}

    @speaking
    def reconstruct(
        previous: Result | None,
        images: list[str] | None,
        masks: list[str] | None,
        *values: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (gradio finds it by its default)
    ) -> tuple:
        kinds, looks = values[: len(chosen)], values[len(chosen) :]

        def tell(what: str, done: float) -> None:
            progress(done, desc=what)

        new = events.reconstruct(images or [], masks or [], Settings(*kinds), tell)
        if previous is not None:
            previous.close()
        most = new.largest_confidence()
        looked = Look(*looks)
        looked = replace(looked, min_confidence=min(looked.min_confidence, most))
        return (
            new,
            events.scene(new, looked),
            events.report(new, looked),
            events.pictures(new),
            None,
            gr.update(maximum=most, value=looked.min_confidence),
        )

    @speaking
    def show(result: Result | None, *looks: Any) -> tuple:
        if result is None:
            return None, "", None
        look = Look(*looks)
        return events.scene(result, look), events.report(result, look), None

    run.click(
        reconstruct,
        [result, images, settings["masks"], *chosen.values(), *look.values()],
        [result, scene, report, gallery, files, look["min_confidence"]],
        concurrency_limit=1,
        concurrency_id="network",
        show_progress_on=scene,
        api_visibility="private",
    )
    for part in look.values():
        part.input(
            show,
            [result, *look.values()],
            [scene, report, files],
            trigger_mode="always_last",
            concurrency_limit=2,
            concurrency_id="look",
            show_progress="minimal",
            show_progress_on=scene,
            api_visibility="private",
        )


def _only_uploads(*parts: gr.File) -> None:
    """Refuse addresses in place of uploads, which gradio would fetch for whoever asks."""
    for part in parts:
        part.async_move_resource_to_block_cache = _refusing(part.async_move_resource_to_block_cache)


def _refusing(move: Callable) -> Callable:
    async def guarded(path: Any) -> Any:
        if path is not None and is_http_url_like(str(path)):
            raise gr.Error("Addresses are not taken: upload the file.", print_exception=False)
        return await move(path)

    return guarded


def _forget(result: Result | None) -> None:
    if result is not None:
        result.close()
