"""The lines of a diagnosis, in sections, with the problems among them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from foveate.html import html_lines, html_table
from foveate.io import JsonObject

__all__ = ["Diagnosis", "Finding", "reason", "without_home"]


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis.

    Args:
        section: such as ``packages``.
        name: what was looked at.
        value: what was found.
        advice: what to do, such as a pip command, or why something is as it is; empty: nothing.
        problem: it is not as it should be.
    """

    section: str
    name: str
    value: str
    advice: str = ""
    problem: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.value}" + (f" ({self.advice})" if self.advice else "")


@dataclass(frozen=True)
class Diagnosis:
    """What a machine has. ``str`` gives it as text, section by section, with the problems first.

    Args:
        findings: line by line.
    """

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What is not as it should be; empty when all is well."""
        return tuple(finding for finding in self.findings if finding.problem)

    def as_dict(self) -> JsonObject:
        """Plain data: ``problems``, a list of lines, and for each section its names with value and advice."""
        found: JsonObject = {"problems": [f"{line.section}, {line}" for line in self.problems]}
        for line in self.findings:
            found.setdefault(line.section, {})[line.name] = {"value": line.value, "advice": line.advice}
        return found

    def __str__(self) -> str:
        lines = ["Problems", *(f"  {line.section}, {line}" for line in self.problems)] if self.problems else []
        lines = lines or ["No problem was found."]
        section = None
        for line in self.findings:
            if line.section != section:
                section = line.section
                lines += ["", section.capitalize()]
            lines.append(f"  {line}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        problems = [f"{line.section}, {line}" for line in self.problems]
        rows = [(line.section, line.name, line.value, line.advice) for line in self.findings]
        marked = [n for n, line in enumerate(self.findings) if line.problem]
        head = html_lines("Problems" if problems else "No problem was found.", problems)
        return head + html_table(("section", "name", "value", "advice"), rows, right=(), bold=marked)


def reason(error: BaseException) -> str:
    """An error as one line, with its type."""
    lines = str(error).strip().splitlines()
    return without_home(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def without_home(text: str) -> str:
    """A text with the home folder, which has the name of the person in it, written as ``~``."""
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where there is none
    return text.replace(home, "~") if len(home) > 1 else text
