"""The notation: which mechanism goes where, as data that prints as itself.

    plan      = placement (";" placement)*
    placement = spec "after" sites | spec "replacing" sites | spec "as pool" | spec "as head" ["on" sites]
    sites     = site ("," site)*          dotted module names; `*` within one part; or #N, the N-th of `fv.sites`
    spec      = name ["(" key=literal, ... ")"]

A plan is data: parsing it executes nothing and imports no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from foveate.arguments import checked_class
from foveate.errors import FoveateError, near

__all__ = ["Literal", "Placement", "Plan", "Spec"]

Literal: TypeAlias = bool | int | float | str | None

VERBS = ("after", "replacing", "as pool", "as head")
_KEYWORDS: dict[str, Literal] = {"True": True, "False": False, "None": None, "true": True, "false": False, "none": None}
_MAX_LENGTH = 100_000

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      |(?P<number>[+-]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)(?![\w.*:])
      |(?P<string>'(?:[^'\\\n]|\\['\\])*'|"(?:[^"\\\n]|\\["\\])*")
      |(?P<word>(?:\#\d+|[\w*][\w.*:-]*))
      |(?P<mark>[();,=])""",
    re.VERBOSE | re.ASCII,
)


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


def _literal_text(value: Literal) -> str:
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value)


@checked_class
@dataclass(frozen=True)
class Spec:
    """A mechanism by name with its options, such as ``ulsam(groups=4)``.

    Args:
        name: a registered name, or ``timm:NAME`` for timm's own attention layer.
        options: (key, literal) pairs in the order written.
    """

    name: str
    options: tuple[tuple[str, Literal], ...] = ()

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={_literal_text(value)}" for key, value in self.options)
        return f"{self.name}({inside})" if inside else self.name

    @property
    def kwargs(self) -> dict[str, Literal]:
        """The options as keyword arguments."""
        return dict(self.options)

    def with_option(self, key: str, value: Literal) -> Spec:
        """The same spec with one more option; an option that is written already stays as it is."""
        return self if key in self.kwargs else Spec(self.name, (*self.options, (key, value)))

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read one spec from text.

        Raises:
            FoveateError: the text is not a spec; the message names the position.
        """
        parser = _Parser(text)
        spec = parser.spec()
        parser.end()
        return spec


@checked_class
@dataclass(frozen=True)
class Placement:
    """One spec and where it goes.

    Args:
        spec: the mechanism.
        verb: ``after``, ``replacing``, ``as pool`` or ``as head``.
        sites: site patterns; none for ``as pool``; for ``as head`` those whose feature maps it reads, or none.
    """

    spec: Spec
    verb: str
    sites: tuple[str, ...] = ()

    def __str__(self) -> str:
        on = "on " if self.verb == "as head" and self.sites else ""
        return f"{self.spec} {self.verb} {on}{', '.join(self.sites)}".rstrip()


@checked_class
@dataclass(frozen=True)
class Plan:
    """What is inserted into a model: placements in the order they are applied.

    ``Plan.parse(str(plan)) == plan``.
    """

    placements: tuple[Placement, ...] = ()

    def __str__(self) -> str:
        return "; ".join(str(placement) for placement in self.placements)

    @classmethod
    def parse(cls, text: str | Plan) -> Plan:
        """Read a plan from text.

        Args:
            text: the notation of this module's docstring; a Plan comes back as it is.

        Raises:
            FoveateError: the text is not a plan; the message names the position and shows the place.
        """
        if isinstance(text, Plan):
            return text
        if not isinstance(text, str):
            raise FoveateError(f"a plan is text such as 'se after blocks.2.1', not {type(text).__name__}")
        parser = _Parser(text)
        placements = [parser.placement()]
        while parser.take(";"):
            if parser.at_end():
                break
            placements.append(parser.placement())
        parser.end()
        return cls(tuple(placements))


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > _MAX_LENGTH:
            raise FoveateError(f"a plan of {len(text)} characters is too long: the limit is {_MAX_LENGTH}")
        self.tokens: list[_Token] = []
        self.index = 0
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.error(f"{text[position]!r} means nothing here", position)
            if match.lastgroup != "space":
                self.tokens.append(_Token(match.lastgroup or "", match.group(), position))
            position = match.end()

    def error(self, what: str, position: int | None = None) -> FoveateError:
        if position is None:
            position = self.tokens[self.index].start if self.index < len(self.tokens) else len(self.text)
        before, after = self.text[max(0, position - 30) : position], self.text[position : position + 30]
        return FoveateError(f"cannot read the plan: {what}, at position {position}: {before!r} <here> {after!r}")

    def peek(self) -> _Token | None:
        return self.tokens[self.index] if self.index < len(self.tokens) else None

    def at_end(self) -> bool:
        return self.index == len(self.tokens)

    def take(self, text: str) -> bool:
        token = self.peek()
        if token is not None and token.text == text and token.kind in ("mark", "word"):
            self.index += 1
            return True
        return False

    def word(self, what: str) -> str:
        token = self.peek()
        if token is None or token.kind != "word":
            raise self.error(f"{what} is expected" + (f", not {token.text!r}" if token else ", but the text ends"))
        self.index += 1
        return token.text

    def end(self) -> None:
        token = self.peek()
        if token is not None:
            raise self.error(f"{token.text!r} is left over")

    def literal(self) -> Literal:
        token = self.peek()
        if token is None:
            raise self.error("a value is expected, but the text ends")
        if token.kind == "string":
            value: Literal = re.sub(r"\\(.)", r"\1", token.text[1:-1])
        elif token.kind == "number":
            integral = token.text.lstrip("+-").isdigit()
            if integral and len(token.text) > 30:
                raise self.error("the number is too long")
            value = int(token.text) if integral else float(token.text)
            if isinstance(value, float) and value in (float("inf"), float("-inf")):
                raise self.error(f"{token.text} is too large for a number")
        elif token.kind == "word" and token.text in _KEYWORDS:
            value = _KEYWORDS[token.text]
        else:
            raise self.error(f"{token.text!r} is not a value: write a number, a 'string', True, False or None")
        self.index += 1
        return value

    def spec(self) -> Spec:
        start = self.index
        name = self.word("the name of a mechanism")
        if not re.fullmatch(r"(?:[A-Za-z_]\w*:)?[A-Za-z_][\w-]*(?:\.\w+)*", name, re.ASCII):
            self.index = start
            raise self.error(f"{name!r} is not the name of a mechanism")
        options: dict[str, Literal] = {}
        if self.take("("):
            while not self.take(")"):
                at = self.index
                key = self.word("an option's name or ')'")
                if not key.isidentifier():
                    self.index = at
                    raise self.error(f"{key!r} is not the name of an option")
                if not self.take("="):
                    raise self.error(f"'=' is expected after {key!r}")
                if key in options:
                    self.index = at
                    raise self.error(f"option {key!r} is given twice")
                options[key] = self.literal()
                if not self.take(",") and (self.peek() is None or self.peek().text != ")"):  # type: ignore[union-attr]
                    raise self.error("',' or ')' is expected")
        return Spec(name, tuple(options.items()))

    def placement(self) -> Placement:
        spec = self.spec()
        verb = self.word(f"'after', 'replacing', 'as pool' or 'as head' after {str(spec)!r}")
        if verb == "as":
            verb = "as " + self.word("'pool' or 'head'")
        if verb not in VERBS:
            self.index -= 1
            raise self.error(f"{verb!r} is not a verb; {near(verb, VERBS)}")
        if verb == "as pool" or (verb == "as head" and not self.take("on")):
            return Placement(spec, verb)
        sites = [self.site()]
        while self.take(","):
            sites.append(self.site())
        return Placement(spec, verb, tuple(sites))

    def site(self) -> str:
        token = self.peek()
        if token is None or token.kind not in ("word", "number"):
            return self.word("a site")
        if not re.fullmatch(r"#\d+|[\w*-]+(?:\.[\w*-]+)*(?::[\w*-]+)?", token.text, re.ASCII):
            raise self.error(f"{token.text!r} is not a site: write a module's dotted name (* within one part) or #N")
        self.index += 1
        return token.text
