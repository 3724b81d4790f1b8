"""A command line that cannot be read, as one line: what was asked, what exists, the nearest name, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from cyclopts import CycloptsError
from cyclopts.exceptions import MissingArgumentError, UnknownCommandError, UnknownOptionError, UnusedCliTokensError

__all__ = ["nearest", "usage_error"]

_INSTEAD = {"--plan": "--family", "--plans": "--family", "--family": "--plans"}  # what another command calls it
_OPTIONS = ("--help", "--version", "--install-completion")  # of foveate itself
_NEAR = 0.6  # what is less alike is not what was meant


def usage_error(error: CycloptsError, commands: Sequence[str]) -> str:
    """The line for an error of the parser.

    Args:
        error: raised by cyclopts.
        commands: the names of all commands.
    """
    command = " ".join(error.command_chain or ())
    more = f"(foveate {command} --help says more)"
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        asked, known = error.unused_tokens[0], list(commands)
        if error.command_chain:
            return f"there is no command {f'{command} {asked}'!r} {more}"
        if asked.startswith("-"):
            found = [name for name in nearest(asked, _OPTIONS) if _likeness(asked, name) >= _NEAR][:1]
            hint = f"; did you mean {found[0]}?" if found else ""
            return f"foveate has no option {asked}{hint} (foveate --help says more)"
        return f"there is no command {asked!r}; the commands, the nearest first: {', '.join(nearest(asked, known))}"
    if isinstance(error, UnknownOptionError):
        asked = (error.token.keyword or error.token.value or "").partition("=")[0]
        names = {name for argument in error.argument_collection for name in argument.names if name.startswith("--")}
        found = [name for name in nearest(asked, sorted(names)) if _likeness(asked, name) >= _NEAR][:2]
        found = [_INSTEAD[asked]] if _INSTEAD.get(asked) in names and not found else found
        hint = f"; did you mean {' or '.join(found)}?" if found else ""
        return f"{command} has no option {asked}{hint} {more}"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        left = " ".join(map(str, error.unused_tokens))
        hint = ": put what holds spaces in quotes" if " " in left else ""
        return f"{command} has no place for {left!r}{hint} {more}"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return _missing(error, command, more)
    text = " ".join(str(error).split())
    return f"{text} {more}"


def _missing(error: MissingArgumentError, command: str, more: str) -> str:
    """An option without its value, an option that must be given, or something that has no option's name."""
    argument = error.argument
    assert argument is not None  # noqa: S101 - the caller looked
    name, unknown = argument.name, [token for token in error.unused_tokens or () if str(token).startswith("--")]
    if name in unknown or any(token.keyword for token in argument.tokens):
        return f"{name} lacks its value {more}"
    near = [token for token in unknown if _likeness(token, name) >= _NEAR]
    hint = f"; did you mean {name} by {near[0]}?" if near else ""
    kind = name.lstrip("-").upper().replace("-", "_") if argument.field_info.is_positional else name
    return f"{command} needs {kind}{hint} {more}"


def nearest(asked: str, names: Iterable[str]) -> list[str]:
    """The names, the nearest to what was asked for first."""
    return sorted(names, key=lambda name: -_likeness(asked, name))


def _likeness(asked: str, name: str) -> float:
    """From 0 to 1: how near two names are; short forms count, as ``--lr`` and ``--learn`` of ``--learning-rate``."""
    one, two = asked.strip("-").lower().replace("_", "-"), name.strip("-").lower()
    if not one:
        return 0.0
    words = two.split("-")
    if one == "".join(word[0] for word in words if word) and len(words) > 1:
        return 1.0
    starts = len(one) >= 2 and two.startswith(one)
    return max(difflib.SequenceMatcher(None, one, two).ratio(), 0.9 if starts else 0.0)
