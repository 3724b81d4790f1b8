"""The page: Gradio's parts around an ``Explorer``. No request leaves the machine."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from foveate.errors import FoveateError
from foveate.web.explorer import METHODS, Explorer

__all__ = ["page"]

_HEADINGS = ["count", "network", "without the plan", "difference"]
_AUDIT = ["site", "spec", "verdict", "reason"]
_BUTTONS: Any = ["download", "fullscreen"]  # not "share", which sends the picture to another server
_THUMBNAIL = 130  # pixels
_PROGRESS = gr.Progress()
_PLAN = "ulsam(groups=4) after blocks.5.1"


def _shown(task: Callable[..., Sequence[Any]], outputs: int) -> Callable[..., list[Any]]:
    """A visitor's mistake is one line on the page, and what was shown before stays.

    The line is the first output; the task gives the others.
    """

    def run(*args: Any) -> list[Any]:
        try:
            return [gr.Markdown(visible=False), *task(*args)]
        except FoveateError as error:
            text = str(error).replace("<", "&lt;")
            return [gr.Markdown(f"**This did not work:** {text}", visible=True), *(gr.skip() for _ in range(outputs))]

    return run


def _choices(classes: Sequence[str], more: Sequence[str] = ()) -> list[tuple[str, str]]:
    """What can be explained: what is predicted, boxes, classes."""
    return [("what is predicted", ""), *((one, one) for one in (*more, *classes))]


def page(explorer: Explorer) -> gr.Blocks:
    """The page of an explorer, to be launched.

    Args:
        explorer: what the page shows.
    """
    saved = list(explorer.saved)
    usual = [*saved, "mobilenetv2_100", "resnet18", "torchvision:shufflenet_v2_x1_0"]
    examples = explorer.examples()

    def look(
        data: bytes | None, name: str, plan: str, method: str, what: str | None, opacity: float, cells: bool
    ) -> tuple[Any, ...]:
        seen = explorer.look(data, name, plan, method, what or "")
        first = seen.maps[0] if seen.maps else None
        gallery = [(seen.overlay(one, opacity, smooth=not cells), one.partition(",")[0]) for one in seen.maps]
        shown = gr.Dropdown(choices=list(seen.maps), value=first, visible=len(seen.maps) > 1)
        drawn = seen.explanation.draw(smooth=not cells)
        note = gr.Markdown(seen.note, visible=bool(seen.note))
        overlay = seen.overlay(first, opacity, smooth=not cells)
        kind, scores = seen.scores
        prediction = gr.Label(scores or {"nothing": 0.0}, label=kind)
        found = gr.Image(seen.found, visible=seen.found is not None)
        every = _choices(explorer.classes(name), seen.choices)
        choose = gr.Dropdown(every, value=what or "")
        cost = explorer.costs(name, plan)
        return seen, note, prediction, shown, overlay, gallery, drawn, cost, choose, found

    def looked_before(data: bytes | None, *rest: Any) -> tuple[Any, ...]:
        """Look again, if there was something to look at."""
        return look(data, *rest) if data is not None else tuple(gr.skip() for _ in looked)

    def blend(seen: Any, name: str | None, opacity: float, cells: bool) -> Any:
        return seen.overlay(name, opacity, smooth=not cells) if seen is not None else None

    def thumbnail(data: bytes | None) -> tuple[Any, ...]:
        if data is None:
            return (gr.Image(None, visible=False),)
        picture = explorer.image(data)
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        return (gr.Image(picture, visible=True),)

    def chosen_example(event: gr.SelectData) -> tuple[bytes, None]:
        data = io.BytesIO()
        examples[int(event.index)][0].save(data, "PNG")
        return data.getvalue(), None  # no longer the file that was given before

    def chosen_network(name: str) -> tuple[Any, ...]:
        return explorer.own_plan(name), gr.Dropdown(_choices(explorer.classes(name)), value="")

    def audit(name: str, plan: str, progress: gr.Progress = _PROGRESS) -> tuple[Any, ...]:
        def advance(done: int, total: int) -> None:
            progress((done, total), unit="images")

        rows = explorer.audit(name, plan, progress=advance).rows
        return ([[str(getattr(row, field)) for field in _AUDIT] for row in rows],)

    def export(name: str, plan: str) -> tuple[Any, ...]:
        path, text = explorer.export(name, plan)
        return gr.File(path, visible=True), gr.Textbox(text, visible=True, lines=text.count("\n") + 1)

    blocks: gr.Blocks
    with gr.Blocks(title="foveate", analytics_enabled=False) as blocks:
        gr.Markdown("# foveate\nWhat a network looks at, and what its attention costs.")
        state, source = gr.State(), gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                model = gr.Dropdown(
                    usual, value=usual[0], allow_custom_value=True, label="Network", info="a name of timm's will do"
                )
                plan = gr.Textbox(
                    explorer.own_plan(usual[0]) if saved else _PLAN,
                    label="Plan",
                    placeholder=_PLAN,
                    info="the attention in the network; empty: none",
                )
                method = gr.Radio(list(METHODS), value="attention", label="Method")
                what = gr.Dropdown(
                    _choices(explorer.classes(usual[0])),
                    value="",
                    allow_custom_value=True,
                    label="Explain",
                    info="a class by name or number, or a box of a detector",
                )
                image = gr.File(label="Image", file_types=["image"], type="binary")
                gr.Markdown(explorer.accepted, elem_classes="hint")
                preview = gr.Image(label="Chosen", interactive=False, height=_THUMBNAIL, visible=False, buttons=[])
                if examples:
                    samples = gr.Gallery(
                        examples,
                        label="Or one of these",
                        height="auto",
                        allow_preview=False,
                        buttons=[],
                        elem_classes="pictures",
                    )
                go = gr.Button("Look", variant="primary")
                problem = gr.Markdown(visible=False, elem_id="problem")
                note = gr.Markdown(visible=False)
                prediction = gr.Label(label="Prediction", num_top_classes=5)
            with gr.Column(scale=2, min_width=320):
                found = gr.Image(
                    label="What was found", interactive=False, format="png", visible=False, height=420, buttons=_BUTTONS
                )
                overlay = gr.Image(
                    label="Map over the image", interactive=False, format="png", height=420, buttons=_BUTTONS
                )
                chosen = gr.Dropdown([], label="Map", visible=False)
                opacity = gr.Slider(0, 1, value=0.6, step=0.05, label="Opacity of the map")
                cells = gr.Checkbox(False, label="Cells: each value of a map as one square, not smoothed")
                with gr.Tab("All maps"):
                    gallery = gr.Gallery(
                        label="All maps",
                        height="auto",
                        format="png",
                        show_label=False,
                        buttons=_BUTTONS,
                        elem_classes="pictures",
                    )
                with gr.Tab("With scales"):
                    drawing = gr.Image(
                        label="Drawing", interactive=False, format="png", show_label=False, buttons=_BUTTONS
                    )
                with gr.Tab("Cost"):
                    costs = gr.Dataframe(headers=_HEADINGS, interactive=False, wrap=False, elem_classes="wide")
                with gr.Tab("Audit"):
                    start = gr.Button("Audit each attention on the server's data")
                    if explorer.left_out:
                        gr.Markdown(explorer.left_out, elem_classes="hint")
                    audits = gr.Dataframe(
                        headers=_AUDIT, interactive=False, wrap=True, column_widths=["22%", "20%", "12%", "46%"]
                    )
                with gr.Tab("Export"):
                    make = gr.Button("Write an ONNX file and check it")
                    file = gr.File(label="ONNX", visible=False, interactive=False)
                    checks = gr.Textbox(label="What was checked", visible=False, interactive=False)
        network = [model, plan]
        looked = [state, note, prediction, chosen, overlay, gallery, drawing, costs, what, found]
        inputs = [source, *network, method, what, opacity, cells]
        again = _shown(looked_before, len(looked))
        go.click(_shown(look, len(looked)), inputs, [problem, *looked])
        for event in (method.change, what.input, plan.submit):
            event(again, inputs, [problem, *looked])
        picked = [image.upload(lambda data: data, image, source)]
        if examples:
            picked.append(samples.select(chosen_example, None, [source, image]))
        for one in picked:
            one.then(_shown(thumbnail, 1), source, [problem, preview]).then(again, inputs, [problem, *looked])
        image.clear(lambda: (None, gr.Image(None, visible=False)), None, [source, preview])
        model.change(_shown(chosen_network, 2), model, [problem, plan, what]).then(
            _shown(lambda *names: (explorer.costs(*names),), 1), network, [problem, costs]
        )
        blocks.load(_shown(lambda *names: (explorer.costs(*names),), 1), network, [problem, costs])
        for event in (opacity.release, chosen.input, cells.change):
            event(blend, [state, chosen, opacity, cells], overlay)
        start.click(_shown(audit, 1), network, [problem, audits])
        make.click(_shown(export, 2), network, [problem, file, checks])
    blocks.queue(default_concurrency_limit=1, max_size=20)
    return blocks
