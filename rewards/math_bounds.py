"""How large the numbers in a mathematical text may become, estimated before anything is computed.

`9^{9^{9^9}}` is ten characters, and a number that no machine can write down: who computes it first and looks
at the clock later has lost a worker for the whole time limit. So the text alone is read, and bounds are
stated; they are above what problems with an answer ask for.
"""

from __future__ import annotations

import math
import re

MAX_DIGITS = 1000
"""Of a number as it is written, and of what a power or a factorial could come to."""

MAX_EXPONENT = 10_000
"""Of a power, the upper limit of a sum or product, and what a binomial or gamma function is taken of."""

MAX_DEPTH = 50
"""Of brackets in brackets."""

_TOKEN = re.compile(r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\\[a-zA-Z]+|\\[()\[\]]|\*\*|\$+|[a-zA-Z^!(){}\[\]]")
_IGNORED = re.compile(r"\\left|\\right|\\[,;:! ]|\{,\}|(?<=\d),(?=\d{3})")
_GROWING = frozenset({"\\binom", "\\dbinom", "\\tbinom", "\\Gamma"})
_OPEN, _CLOSE = "({[", ")}]"


class TooLargeError(Exception):
    """A text whose numbers may pass the bounds."""


def is_too_large(text: str) -> bool:
    """Whether numbers in `text` could pass the bounds: an estimate from above."""
    try:
        _Reader(_TOKEN.findall(_IGNORED.sub("", text))).log10(depth=0)
    except TooLargeError:
        return True
    return False


class _Reader:
    """Reads tokens from left to right; sizes are decimal logarithms, and every sign counts as a product."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0
        self._in_math = 0  # delimiters that are open: outside of them "!" is no factorial

    def log10(self, depth: int) -> float:
        """The size of what comes until the bracket closes."""
        if depth > MAX_DEPTH:
            raise TooLargeError
        total = last = 0.0
        while self._at < len(self._tokens):
            token = self._next()
            if token in _CLOSE:
                break
            if token in ("^", "**"):
                last, total = self._power(last, total, depth)
            elif token == "!" and not self._in_math:
                continue  # "it is 2024!"
            elif token == "!":
                size = _checked(_value(last) * last)  # n! <= n^n
                last, total = size, total - last + size
            else:
                last = self._atom(token, depth)
                total += last
        return total

    def _power(self, last: float, total: float, depth: int) -> tuple[float, float]:
        exponent = _value(self._operand(depth))
        if exponent > MAX_EXPONENT:
            raise TooLargeError
        size = _checked(last * max(exponent, 1.0))
        return size, total - last + size

    def _operand(self, depth: int) -> float:
        """The size of an exponent: an atom, its own powers included, as they bind from the right."""
        if self._at == len(self._tokens):
            return 0.0
        size = self._atom(self._next(), depth)
        while self._at < len(self._tokens) and self._tokens[self._at] in ("^", "**", "!"):
            if self._next() == "!":
                size = _checked(size * _value(size))
            else:
                size = _checked(size * max(_value(self._operand(depth + 1)), 1.0))
        return size

    def _atom(self, token: str, depth: int) -> float:
        if token in _OPEN:
            return self.log10(depth + 1)
        if token == "\\boxed":
            self._in_math += 1
            size = self.log10(depth + 1) if self._next_is("{") else 0.0
            self._in_math -= 1
            return size
        if token in _GROWING:
            while self._at < len(self._tokens) and self._tokens[self._at] in _OPEN:
                if _value(self._atom(self._next(), depth)) > MAX_EXPONENT:
                    raise TooLargeError
            return 0.0
        if token[0] == "$":
            self._in_math = 0 if self._in_math else 1
        elif token in ("\\(", "\\["):
            self._in_math += 1
        elif token in ("\\)", "\\]"):
            self._in_math = max(self._in_math - 1, 0)
        if not token[0].isdigit():
            return 0.0
        size = _log10(token)
        return _checked(size)

    def _next_is(self, token: str) -> bool:
        """Whether that comes next; it is read then."""
        is_so = self._at < len(self._tokens) and self._tokens[self._at] == token
        self._at += is_so
        return is_so

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]


def _checked(size: float) -> float:
    if size > MAX_DIGITS:
        raise TooLargeError
    return size


def _log10(number: str) -> float:
    """The size of a number as written; 0 for one below 1, and a small exponent counts as a large one."""
    mantissa, _, exponent = number.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or len(exponent) > len(str(MAX_EXPONENT)) + 1:
        raise TooLargeError
    value = int(mantissa.partition(".")[0])
    return (math.log10(value) if value else 0.0) + abs(int(exponent or "0"))


def _value(size: float) -> float:
    """The number of this size, or one that is beyond every bound."""
    return 10.0 ** min(size, 300.0)
