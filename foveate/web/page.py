"""The page: Gradio's parts around an ``Explorer``. No request leaves the machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from foveate.errors import FoveateError
from foveate.web.explorer import METHODS, Explorer

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr

__all__ = ["LOOKS", "page"]

# Fonts of the machine: Gradio's own themes ask another server for theirs.
LOOKS: dict[str, Any] = {
    "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    "css": ".wide td, .wide th { white-space: nowrap } footer { display: none !important }",
}
_HEADINGS = ["", "network", "without the plan", "difference"]
_AUDIT = ["site", "spec", "verdict", "reason"]
_BUTTONS: Any = ["download", "fullscreen"]  # not "share", which sends the picture to another server
_PLAN = "ulsam(groups=4) after blocks.5.1"


def _shown(task: Callable[..., Any]) -> Callable[..., Any]:
    """A visitor's mistake is one line on the page."""

    def run(*args: Any) -> Any:
        try:
            return task(*args)
        except FoveateError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from None

    return run


def page(explorer: Explorer) -> gr.Blocks:
    """The page of an explorer, to be launched.

    Args:
        explorer: what the page shows.
    """
    saved = list(explorer.saved)
    usual = [*saved, "mobilenetv2_100", "resnet18", "torchvision:shufflenet_v2_x1_0"]

    def look(data: bytes | None, name: str, plan: str, method: str, opacity: float) -> tuple[Any, ...]:
        seen = explorer.look(data, name, plan, method)
        first = seen.maps[0] if seen.maps else None
        gallery = [(seen.overlay(one, opacity), one.partition(",")[0]) for one in seen.maps]
        shown = gr.Dropdown(choices=list(seen.maps), value=first, visible=len(seen.maps) > 1)
        drawn = seen.explanation.draw()
        note = gr.Markdown(seen.note, visible=bool(seen.note))
        return seen, note, dict(seen.explanation.top()), shown, seen.overlay(first, opacity), gallery, drawn

    def blend(seen: Any, name: str | None, opacity: float) -> Any:
        return seen.overlay(name, opacity) if seen is not None else None

    def audit(name: str, plan: str) -> list[list[str]]:
        return [[str(getattr(row, field)) for field in _AUDIT] for row in explorer.audit(name, plan).rows]

    blocks: gr.Blocks
    with gr.Blocks(title="foveate", analytics_enabled=False) as blocks:
        gr.Markdown("# foveate\nWhat a network looks at, and what its attention costs.")
        state = gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                model = gr.Dropdown(
                    usual, value=usual[0], allow_custom_value=True, label="Network", info="a name of timm's will do"
                )
                plan = gr.Textbox("" if saved else _PLAN, label="Plan", placeholder=_PLAN, info="empty: as it is")
                method = gr.Radio(list(METHODS), value="attention", label="Method")
                image = gr.File(label="Image", file_types=["image"], type="binary")
                go = gr.Button("Look", variant="primary")
                note = gr.Markdown(visible=False)
                prediction = gr.Label(label="Prediction", num_top_classes=5)
            with gr.Column(scale=2, min_width=320):
                overlay = gr.Image(
                    label="Map over the image", interactive=False, format="png", height=420, buttons=_BUTTONS
                )
                chosen = gr.Dropdown([], label="Map", visible=False)
                opacity = gr.Slider(0, 1, value=0.6, step=0.05, label="Opacity of the map")
                with gr.Tab("All maps"):
                    gallery = gr.Gallery(
                        label="All maps", columns=3, height="auto", format="png", show_label=False, buttons=_BUTTONS
                    )
                with gr.Tab("With scales"):
                    drawing = gr.Image(
                        label="Drawing", interactive=False, format="png", show_label=False, buttons=_BUTTONS
                    )
                with gr.Tab("Cost"):
                    costs = gr.Dataframe(headers=_HEADINGS, interactive=False, wrap=False, elem_classes="wide")
                with gr.Tab("Audit"):
                    start = gr.Button("Audit each attention on the server's data")
                    audits = gr.Dataframe(headers=_AUDIT, interactive=False, wrap=True)
        network = [model, plan]
        looked = [state, note, prediction, chosen, overlay, gallery, drawing]
        inputs = [image, *network, method, opacity]
        for event in (go.click, image.upload, method.change, plan.submit):
            event(
                _shown(lambda data, *rest: look(data, *rest) if data else [gr.skip()] * len(looked)), inputs, looked
            ).success(_shown(explorer.costs), network, costs)
        for event in (model.change, blocks.load):
            event(_shown(explorer.costs), network, costs)
        opacity.release(blend, [state, chosen, opacity], overlay)
        chosen.input(blend, [state, chosen, opacity], overlay)
        start.click(_shown(audit), network, audits)
    blocks.queue(default_concurrency_limit=1, max_size=20)
    return blocks
