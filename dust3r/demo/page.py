"""The page: its parts, what shows when, and which function each event calls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio_client.utils import is_http_url_like

from dust3r.demo.alignment import Alignment
from dust3r.demo.arguments import MASKED
from dust3r.demo.components import settings
from dust3r.demo.events import Events, Look, Result, speaking

COLOURS = [("image", "rgb"), ("depth", "depth"), ("uncertainty", "uncertainty")]
SUFFIXES = ["image", ".heic", ".heif", ".avif"]

# Seconds. What a closed tab had goes after an hour, by gradio's own clock.
EXPIRY, SWEEP = 6 * 3600, 600

CSS = """
.gradio-container { width: 100% !important; max-width: 1360px !important; }
.gradio-container { margin: 0 auto !important; }
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


def build(events: Events, methods: Sequence[type[Alignment]]) -> gr.Blocks:
    """The page over ``events``, with a tab for each of ``methods``; to be launched."""
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
                masks, masked = _masks()
                forms = _forms(events, methods, images)
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
            with gr.Tab("Depth and its certainty"):
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
        _only_uploads(images, masks)
        uploads, shown = [images, masks, masked], [scene, report, gallery, files]
        for form in forms:
            _run(events, form, result, uploads, look, shown)
        _show(events, result, look, scene, report, files)
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


@dataclass(frozen=True)
class _Form:
    """A tab: settings of an alignment by their names, and the button that starts it."""

    method: type[Alignment]
    settings: dict[str, Component]
    run: gr.Button


def _masks() -> tuple[gr.File, gr.Radio]:
    with gr.Accordion("Masks", open=False):
        gr.Markdown("Masks are named as their images; what is black is left out.")
        masks = gr.File(
            label="Masks",
            file_count="multiple",
            file_types=SUFFIXES,
            height=130,
            elem_id="masks",
        )
        masked = gr.Radio(list(MASKED), value="keep", label="What the network sees under a mask")
    return masks, masked


def _forms(events: Events, methods: Sequence[type[Alignment]], images: gr.File) -> list[_Form]:
    """A tab for each method; where one does not go with the model, its tab says why and no more."""
    forms = []
    with gr.Tabs(elem_id="alignment"):
        for method in methods:
            with gr.Tab(method.title):
                gr.Markdown(method.about)
                if obstacle := method.obstacle(events.model):
                    gr.Markdown(obstacle, elem_id=f"obstacle_{method.name}")
                    continue
                parts = method.components(events.model)
                run = gr.Button("Reconstruct", variant="primary", elem_id=f"run_{method.name}")
                forms.append(_Form(method, parts, run))

    references = [form.settings["reference"] for form in forms]

    def count(paths: list[str] | None) -> dict[Component, Any]:
        return {part: gr.update(maximum=max(2, len(paths or ())), value=1) for part in references}

    images.change(count, images, references, api_visibility="private")
    return forms


def _look() -> dict[str, Component]:
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


def _run(
    events: Events,
    form: _Form,
    result: gr.State,
    uploads: list[Component],
    look: dict[str, Component],
    shown: list[Component],
) -> None:
    """Let the form's button reconstruct."""

    @speaking
    def reconstruct(
        previous: Result | None,
        images: list[str] | None,
        masks: list[str] | None,
        masked: str,
        *values: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (gradio finds it by its default)
    ) -> tuple:
        chosen, looks = values[: len(form.settings)], values[len(form.settings) :]
        alignment = settings(form.method, dict(zip(form.settings, chosen, strict=True)))

        def tell(what: str, done: float) -> None:
            progress(done, desc=what)

        new = events.reconstruct(images or [], masks or [], masked, alignment, tell)
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

    form.run.click(
        reconstruct,
        [result, *uploads, *form.settings.values(), *look.values()],
        [result, *shown, look["min_confidence"]],
        concurrency_limit=1,
        concurrency_id="network",
        show_progress_on=shown[0],
        api_name=f"reconstruct_{form.method.name}",
        api_visibility="private",
    )


def _show(
    events: Events,
    result: gr.State,
    look: dict[str, Component],
    scene: gr.Model3D,
    report: gr.Markdown,
    files: gr.File,
) -> None:
    """Let every change of the look show the scene anew."""

    @speaking
    def show(result: Result | None, *looks: Any) -> tuple:
        if result is None:
            return None, "", None
        look = Look(*looks)
        return events.scene(result, look), events.report(result, look), None

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
