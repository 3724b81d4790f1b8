"""A page that runs an exported ONNX file in the browser: it takes a picture, names the classes and draws the maps."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from foveate.errors import FoveateError
from foveate.exporters.opened import ExportedClassifier
from foveate.io import write_files

__all__ = ["RUNTIME_FILES", "write_browser_page"]

RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""Of the npm package onnxruntime-web, folder ``dist``: what the page needs."""


def write_browser_page(
    exported: ExportedClassifier, folder: str | os.PathLike[str], runtime: str | os.PathLike[str]
) -> Path:
    """Write a folder that any web server can serve: the page, the network, and the runtime beside it.

    Nothing is fetched from anywhere else, and no picture leaves the browser. Try it with ``python -m http.server``.

    Args:
        exported: an ONNX file of a classifier that takes one image, or any number of them; where it takes any size,
            the page shows it the network's own.
        folder: made; files of these names in it are replaced.
        runtime: the folder ``dist`` of the npm package onnxruntime-web (``npm install onnxruntime-web``).

    Returns:
        The page.

    Raises:
        FoveateError: the file is not ONNX, is not a classifier, takes several images at a time, the runtime is not
            there, or the folder cannot be written.
    """
    if exported.format != "onnx":
        raise FoveateError(f"a page in the browser runs ONNX files, and {exported.path} is {exported.format}")
    if task := exported.metadata.get("task"):
        raise FoveateError(f"a page in the browser shows classes of images, and {exported.path} is for {task}")
    if exported.batch not in (None, 1):
        raise FoveateError(
            f"a page in the browser shows one image at a time, and {exported.path} takes {exported.batch}: export it "
            "with batch=1 or without batch="
        )
    runtime, folder = Path(runtime), Path(folder)
    missing = [name for name in RUNTIME_FILES if not (runtime / name).is_file()]
    if missing:
        raise FoveateError(
            f"{runtime} does not hold {', '.join(missing)}: npm install onnxruntime-web, and name its folder dist, "
            "node_modules/onnxruntime-web/dist"
        )
    loader = PackageLoader("foveate", "exporters/templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    text = environment.get_template("browser.html.jinja").render(
        metadata=dict(exported.metadata), file=exported.path.name
    )
    page = folder / "index.html"
    beside = {folder / "onnxruntime-web" / name: (runtime / name).read_bytes() for name in RUNTIME_FILES}
    network = exported.path
    write_files({**beside, folder / network.name: lambda path: shutil.copyfile(network, path), page: text})
    return page
