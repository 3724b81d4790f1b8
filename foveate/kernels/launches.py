"""How many programs a launch on CUDA needs, and how many run at a time. Triton has two of them, but comes in late."""

from __future__ import annotations

import functools

import torch

__all__ = ["divide_up", "power_of_two", "processors_and_cache"]


def divide_up(whole: int, part: int) -> int:
    """How many parts make a whole, the last perhaps smaller."""
    return -(-whole // part)


def power_of_two(number: int) -> int:
    """The least that is not below a number of 1 or more."""
    return 1 << (number - 1).bit_length()


@functools.cache
def processors_and_cache(device: torch.device) -> tuple[int, int]:
    """How many multiprocessors there are, and the bytes of the L2 cache."""
    if device.type == "cpu":  # Triton's interpreter
        return 4, 2**20
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.L2_cache_size
