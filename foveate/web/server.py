"""``foveate serve``: the page on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError
from foveate.web.explorer import Explorer, Limits

__all__ = ["serve"]


def serve(
    models: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    *,
    data: str | None = None,
    pretrained: bool = False,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_file_bytes: int = Limits.file_bytes,
    max_pixels: int = Limits.pixels,
    block: bool = True,
) -> Any:
    """Show networks in the browser: prediction, maps, cost, audit.

    Args:
        models: one folder of a saved model, or several to choose from. timm's and torchvision's networks can be named
            on the page.
        data: a data set with labels, for audits, as ``open_data`` takes it.
        pretrained: give timm's and torchvision's networks their ImageNet weights.
        host: the address to listen at. Any other than the loopback lets other machines in: there is no password.
        port: the port.
        max_file_bytes: of an upload.
        max_pixels: of an image, read from its header before anything is decoded.
        block: wait until the server is stopped; at Python's prompt and in notebooks it never waits.

    Returns:
        Gradio's application, which ``close()`` stops.

    Raises:
        FoveateError: gradio is not installed, a folder holds no saved model, a limit is below 1, or the port is taken.
    """
    limits = Limits(max_file_bytes, max_pixels)
    saved = _labels(models)
    # What cannot work raises its error before gradio is imported, which takes seconds.
    if importlib.util.find_spec("gradio") is None:
        raise FoveateError("foveate serve needs gradio: pip install 'foveate[web]'")
    _check_address(host, port)
    explorer = Explorer(saved, data=data, pretrained=pretrained, limits=limits)
    for label in saved:
        explorer.network(label)
    from foveate.web.looks import LOOKS
    from foveate.web.page import page

    blocks = page(explorer)
    try:
        with _without_proxy(host):
            blocks.launch(
                server_name=f"[{host}]" if ":" in host else host,  # an address of IPv6, as it stands in a URL
                server_port=port,
                share=False,
                max_file_size=limits.file_bytes,
                prevent_thread_lock=True,
                quiet=True,
                footer_links=[],
                **LOOKS,
            )
    except OSError as error:
        raise _unusable(host, port, error) from error
    if block and not getattr(sys, "ps1", sys.flags.interactive):  # at a prompt the page is open while one works on
        blocks.block_thread()
    return blocks


@contextlib.contextmanager
def _without_proxy(host: str) -> Iterator[None]:
    """Let requests to this machine go straight there: gradio asks its own page, and a proxy does not reach it."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    own = [value for value in {*before.values()} if value]
    os.environ.update(dict.fromkeys(before, ",".join([*own, host, "127.0.0.1", "localhost"])))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_address(host: str, port: int) -> None:
    """Make sure that a server can listen there.

    Raises:
        FoveateError: the port is taken or not a port, or the machine has no such address.
    """
    if not 1 <= port <= 65535:
        raise FoveateError(f"port {port} at {host} cannot be used: ports are 1 to 65535; give another")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            if os.name == "posix":  # elsewhere it would take a port that is in use
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise _unusable(host, port, error) from error


def _unusable(host: str, port: int, error: Exception) -> FoveateError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return FoveateError(f"port {port} at {host} cannot be used: {reason}; give another")


def _labels(models: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> dict[str, str]:
    """A label for each folder: its name, or as much of its path as tells it from the others."""
    if isinstance(models, str | os.PathLike):
        models = [models]
    if not isinstance(models, Sequence) or not all(isinstance(model, str | os.PathLike) for model in models):
        given = type(models[0] if isinstance(models, Sequence) else models).__name__
        raise FoveateError(f"serve takes folders of saved models, not {given}: fv.save it, name the folder")
    paths = [Path(model).resolve() for model in models]
    for model, path in zip(models, paths, strict=True):
        if not path.is_dir():
            raise FoveateError(f"there is no folder {os.fspath(model)!r}: name folders that foveate saved")
    paths = list(dict.fromkeys(paths))
    # What ``fit`` saves is called "last" or "model_best", in the folder of its run.
    parts = {path: 2 if path.name in ("last", "model_best") else 1 for path in paths}
    labels = {path: "/".join(path.parts[-most:]) for path, most in parts.items()}
    while len(set(labels.values())) < len(paths):  # whole paths differ
        shared = [path for path in paths if list(labels.values()).count(labels[path]) > 1]
        parts |= {path: parts[path] + 1 for path in shared}
        labels = {path: "/".join(path.parts[-most:]) for path, most in parts.items()}
    return {label: str(path) for path, label in labels.items()}
