"""What ``latency`` measured, as text, as plain data and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from foveate.accounting.profiling.runners import BenchmarkConfig
from foveate.accounting.profiling.timer import Quantiles
from foveate.html import html_lines, html_table
from foveate.io import JsonObject

__all__ = ["Latency", "Timing"]


@dataclass(frozen=True)
class Timing:
    """What was measured in one configuration. Quantiles are over the rounds.

    Args:
        setting: batch size, threads, dtype, memory format, backend.
        seconds: of a batch.
        reference_seconds: of the reference; None without one.
        ratio: seconds for one of the reference's, round by round.
        peak_bytes: the most memory that the weights and a pass take; None: it was not measured.
        reference_peak_bytes: the reference's.
    """

    setting: BenchmarkConfig
    seconds: Quantiles
    reference_seconds: Quantiles | None = None
    ratio: Quantiles | None = None
    peak_bytes: int | None = None
    reference_peak_bytes: int | None = None

    @property
    def images_per_second(self) -> float:
        """By the median of the seconds."""
        return self.setting.batch_size / self.seconds.median

    def as_dict(self) -> JsonObject:
        """Plain data, flat: quantiles have a key for each of their numbers."""
        found: dict[str, object] = asdict(self.setting)
        for name in ("seconds", "reference_seconds", "ratio"):
            quantiles = getattr(self, name)
            for part in fields(Quantiles):
                key = name if part.name == "median" else f"{name}_{part.name}"
                if part.name != "count":
                    found[key] = None if quantiles is None else getattr(quantiles, part.name)
        found["rounds"] = self.seconds.count
        found["images_per_second"] = self.images_per_second
        return {**found, "peak_bytes": self.peak_bytes, "reference_peak_bytes": self.reference_peak_bytes}

    def __str__(self) -> str:
        at = self.setting
        said = f"batch {at.batch_size}, {at.threads} threads, {at.dtype}, {at.memory_format}, {at.backend}: "
        said += f"{1000 * self.seconds.median:.3g} ms, {self.images_per_second:.3g} images/s"
        return said if self.ratio is None else f"{said}, {self.ratio} of the reference's time"


@dataclass(frozen=True)
class Latency:
    """What ``latency`` measured. Its text has a line for each setting.

    Args:
        timings: one for each setting.
        reference: what the reference is; "" without one.
        device: what it was measured on.
        versions: of torch and, where it ran, onnxruntime.
        notes: what could not be measured, and why.
    """

    timings: tuple[Timing, ...]
    reference: str
    device: str
    versions: str
    notes: tuple[str, ...] = ()

    def as_dicts(self) -> list[JsonObject]:
        """Plain data, flat: one for each setting, with the device."""
        whole = {"reference": self.reference, "device": self.device, "versions": self.versions}
        return [{**timing.as_dict(), **whole} for timing in self.timings]

    def __str__(self) -> str:
        return "\n".join(map(str, self.timings))

    def _repr_html_(self) -> str:
        timings = self.timings
        settings = {"batch": "batch_size", "threads": "threads", "dtype": "dtype", "backend": "backend"}
        columns = {
            **{head: [getattr(timing.setting, name) for timing in timings] for head, name in settings.items()},
            "memory format": [timing.setting.memory_format for timing in timings],
            "ms": [f"{1000 * timing.seconds.median:.3g}" for timing in timings],
            "images/s": [f"{timing.images_per_second:.4g}" for timing in timings],
            "peak MB": [_megabytes(timing.peak_bytes) for timing in timings],
        }
        if self.reference:
            quantiles = [timing.reference_seconds for timing in timings]
            columns["reference, ms"] = [f"{1000 * found.median:.3g}" if found else None for found in quantiles]
            columns["reference, peak MB"] = [_megabytes(timing.reference_peak_bytes) for timing in timings]
            columns["ratio [95%]"] = [timing.ratio for timing in timings]
        where = [f"reference: {self.reference}" if self.reference else "", self.device, self.versions, *self.notes]
        return html_table(list(columns), zip(*columns.values(), strict=True)) + html_lines("", where)


def _megabytes(count: int | None) -> str | None:
    return None if count is None else f"{count / 1e6:.4g}"
