"""``foveate serve``."""

from __future__ import annotations

import math

import foveate as fv
from foveate.cli.options import say
from foveate.errors import FoveateError

__all__ = ["serve"]


def serve(
    *models: str,
    data: str | None = None,
    pretrained: bool = False,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_megabytes: float = 10,
    max_megapixels: float = 24,
) -> None:
    """Look at networks in the browser: prediction, maps, cost, audit. Stop with Ctrl-C.

    Example: `foveate serve runs/mine --data path/to/images`

    Args:
        models: folders of saved models to choose from; any network of timm's can be named on the page.
        data: images with labels, for audits: a folder, a Parquet file, elpv.
        pretrained: give timm's networks their ImageNet weights.
        host: the address to listen at; another than the loopback lets other machines in, without a password.
        port: the port.
        max_megabytes: the largest file that is taken.
        max_megapixels: the largest image that is decoded.
    """
    limits = {"--max-megabytes": max_megabytes, "--max-megapixels": max_megapixels}
    for option, value in limits.items():
        if not (math.isfinite(value) and value > 0):
            raise FoveateError(f"{option} {value}: give a number above 0")
    if host not in ("127.0.0.1", "::1", "localhost"):
        say(f"listening at {host}: whoever reaches this machine can use the page, there is no password")
    running = fv.serve(
        models,
        data=data,
        pretrained=pretrained,
        host=host,
        port=port,
        max_file_bytes=round(max_megabytes * 1e6),
        max_pixels=round(max_megapixels * 1e6),
        block=False,
    )
    shown = f"[{host}]" if ":" in host else host  # an address of IPv6
    say(f"http://{shown}:{port} (Ctrl-C stops)")  # now that somebody answers there
    running.block_thread()
