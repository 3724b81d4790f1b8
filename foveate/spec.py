"""The notation: which mechanism goes where, as data that prints as itself.

    plan      = placement (";" placement)*
    placement = spec "after" sites | spec "replacing" sites | spec "as pool" | spec "as head" ["on" sites]
    sites     = site ("," site)*          dotted module names; `*` within one part; or #N, the N-th of `fv.sites`
    spec      = name ["(" key=literal, ... ")"]

A plan is data: parsing it executes nothing and imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar

from foveate.arguments import checked_class
from foveate.errors import FoveateError, near
from foveate.html import html_text

__all__ = ["VERBS", "Literal", "Parser", "Placement", "Plan", "Spec", "literal_text"]

Literal: TypeAlias = bool | int | float | str | None
Value = TypeVar("Value")

VERBS = ("after", "replacing", "as pool", "as head")
_KEYWORDS: dict[str, Literal] = {"True": True, "False": False, "None": None, "true": True, "false": False, "none": None}
_MAX_LENGTH = 100_000

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      |(?P<number>[+-]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)(?![\w.*:])
      |(?P<string>'(?:[^'\\\n]|\\['\\])*'|"(?:[^"\\\n]|\\["\\])*")
      |(?P<word>(?:\#\d+|[\w*][\w.*:-]*))
      |(?P<mark>[();,=|])""",
    re.VERBOSE | re.ASCII,
)


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


def literal_text(value: Literal) -> str:
    """A literal as it is written in a plan."""
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
        inside = ", ".join(f"{key}={literal_text(value)}" for key, value in self.options)
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
        parser = Parser(text)
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
    """What is inserted into a model: ``placements``, in the order they are applied.

    ``Plan.parse(str(plan)) == plan``.
    """

    placements: tuple[Placement, ...] = ()
    _repr_html_ = html_text

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
        parser = Parser(text)
        placements = [parser.placement()]
        while parser.take(";"):
            if parser.at_end():
                break
            placements.append(parser.placement())
        parser.end()
        return cls(tuple(placements))


class Parser:
    """Reads text from left to right; a family's parser reads more (``family``).

    Args:
        text: the whole text.
        kind: what it is called in messages: "plan" or "family".

    Raises:
        FoveateError: the text is too long, or holds a character that means nothing.
    """

    def __init__(self, text: str, kind: str = "plan") -> None:
        self.text, self.kind = text, kind
        if len(text) > _MAX_LENGTH:
            raise FoveateError(f"a {kind} of {len(text)} characters is too long: the limit is {_MAX_LENGTH}")
        self.tokens: list[_Token] = []
        self.index = 0
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.error(f"{text[position]!r} means nothing here", position)
            if match.group() == "|" and kind == "plan":
                raise self.error("'|' separates the alternatives of a family, and a plan has none", position)
            if match.lastgroup != "space":
                self.tokens.append(_Token(match.lastgroup or "", match.group(), position))
            position = match.end()

    def error(self, what: str, position: int | None = None) -> FoveateError:
        """What cannot be read, with its position and what stands there."""
        if position is None:
            position = self.tokens[self.index].start if self.index < len(self.tokens) else len(self.text)
        before, after = self.text[max(0, position - 30) : position], self.text[position : position + 30]
        return FoveateError(f"cannot read the {self.kind}: {what}, at position {position}: {before!r} <here> {after!r}")

    def peek(self) -> _Token | None:
        """The next token; None at the end."""
        return self.tokens[self.index] if self.index < len(self.tokens) else None

    def at_end(self) -> bool:
        """Whether all was read."""
        return self.index == len(self.tokens)

    def take(self, text: str) -> bool:
        """Read a mark or a word if it comes next."""
        token = self.peek()
        if token is not None and token.text == text and token.kind in ("mark", "word"):
            self.index += 1
            return True
        return False

    def word(self, what: str) -> str:
        """Read a word; ``what`` says in the error what is expected."""
        token = self.peek()
        if token is None or token.kind != "word":
            raise self.error(f"{what} is expected" + (f", not {token.text!r}" if token else ", but the text ends"))
        self.index += 1
        return token.text

    def end(self) -> None:
        """Make sure that nothing is left over."""
        token = self.peek()
        if token is not None:
            hint = " ('any of' and 'some of' stand in a family, not in a plan)" if token.text == "of" else ""
            raise self.error(f"{token.text!r} is left over{hint}")

    def literal(self) -> Literal:
        """Read a value."""
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
        """Read a spec."""
        return Spec(*self.name_and_options(self.literal))

    def name_and_options(self, value: Callable[[], Value]) -> tuple[str, tuple[tuple[str, Value], ...]]:
        """Read a name and its options, whose values ``value`` reads."""
        start = self.index
        name = self.word("the name of a mechanism")
        if not re.fullmatch(r"(?:[A-Za-z_]\w*:)?[A-Za-z_][\w-]*(?:\.\w+)*", name, re.ASCII):
            self.index = start
            raise self.error(f"{name!r} is not the name of a mechanism")
        options: dict[str, Value] = {}
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
                options[key] = value()
                if not self.take(",") and (self.peek() is None or self.peek().text != ")"):  # type: ignore[union-attr]
                    raise self.error("',' or ')' is expected")
        return name, tuple(options.items())

    def verb(self, behind: str) -> str:
        """Read a verb."""
        verb = self.word(f"'after', 'replacing', 'as pool' or 'as head' after {behind!r}")
        if verb == "as":
            verb = "as " + self.word("'pool' or 'head'")
        if verb not in VERBS:
            self.index -= 1
            raise self.error(f"{verb!r} is not a verb; {near(verb, VERBS)}")
        return verb

    def placement(self) -> Placement:
        """Read a placement."""
        spec = self.spec()
        verb = self.verb(str(spec))
        if verb == "as pool" or (verb == "as head" and not self.take("on")):
            return Placement(spec, verb)
        return Placement(spec, verb, self.sites())

    def sites(self) -> tuple[str, ...]:
        """Read a list of site patterns."""
        sites = [self.site()]
        while self.take(","):
            sites.append(self.site())
        return tuple(sites)

    def site(self) -> str:
        """Read a site pattern."""
        token = self.peek()
        if token is None or token.kind not in ("word", "number"):
            return self.word("a site")
        if not re.fullmatch(r"#\d+|[\w*-]+(?:\.[\w*-]+)*(?::[\w*-]+)?", token.text, re.ASCII):
            raise self.error(f"{token.text!r} is not a site: write a module's dotted name (* within one part) or #N")
        self.index += 1
        return token.text
