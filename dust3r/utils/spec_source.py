"""The text of a specification string: parsing it, and errors that point into it."""

import ast
import re
import textwrap
from typing import NoReturn

MAX_DEPTH = 100
SHOWN_WIDTH = 160

ALLOWED = (
    "allowed are: calls of registered names, registered names, numbers, strings, tuples, lists, "
    "dicts, None, True, False, inf, float('inf') and the operators @ + *"
)


class SpecError(ValueError):
    """A specification string that cannot be built; the message shows the spot with a caret."""


class Source:
    """The text of a specification: where its nodes are, and errors that point into it.

    It is parsed inside a pair of parentheses, which makes line breaks and indentation harmless.
    Positions are indices into ``text``, without those parentheses.
    """

    def __init__(self, text: str) -> None:
        # The parser's line breaks are these three and no others.
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        self.text = textwrap.dedent(text).strip()
        self._lines = self.text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def parse(self) -> ast.expr:
        """The syntax tree of the text. Raises ``SpecError`` where it is not an expression."""
        if not self.text:
            raise SpecError("the specification is empty; " + ALLOWED)
        self._check_brackets()
        try:
            return ast.parse(f"({self.text}\n)", mode="eval").body
        except SyntaxError as error:
            line = min((error.lineno or 1) - 1, len(self._lines) - 1)
            column = (error.offset or 1) - 1 - (line == 0)
            column = min(max(column, 0), len(self._lines[line]))
            self.fail(self._starts[line] + column, error.msg)
        except (RecursionError, MemoryError):
            self.fail(0, f"nested too deeply: at most {MAX_DEPTH} levels are allowed")
        except ValueError as error:
            self.fail(0, f"not readable as text: {error}")

    def start(self, node: ast.expr | ast.keyword) -> int:
        """Where ``node`` begins."""
        return self._index(node.lineno, node.col_offset)

    def after(self, node: ast.expr) -> int:
        """Where the token after ``node`` begins, brackets closed around it left aside."""
        end = self._index(node.end_lineno, node.end_col_offset)
        return _BETWEEN.match(self.text, end).end()

    def fail(self, index: int, message: str, cause: BaseException | None = None) -> NoReturn:
        """Raise the ``SpecError`` that shows the line of ``index`` with a caret under it."""
        number = self.text.count("\n", 0, index)
        column = index - self._starts[number]
        line = "".join(char if char.isprintable() else " " for char in self._lines[number])
        if len(line) > SHOWN_WIDTH:
            first = min(max(column - SHOWN_WIDTH // 2, 0), len(line) - SHOWN_WIDTH)
            last = first + SHOWN_WIDTH
            before = "..." if first else ""
            line = before + line[first:last] + ("..." if last < len(line) else "")
            column += len(before) - first
        where = f" (line {number + 1})" if len(self._lines) > 1 else ""
        raise SpecError(f"{message}{where}\n  {line}\n  {' ' * column}^") from cause

    def _index(self, lineno: int, byte_column: int) -> int:
        # The parser counts columns in UTF-8 bytes, and our opening parenthesis on the first line.
        line = self._lines[lineno - 1] if lineno <= len(self._lines) else ""
        prefix = line.encode()[: max(byte_column - (lineno == 1), 0)]
        return min(self._starts[lineno - 1] + len(prefix.decode(errors="ignore")), len(self.text))

    def _check_brackets(self) -> None:
        # The parser would blame our own parentheses for an unbalanced text, or be content with
        # one such as "a) + (b".
        pairs = {")": "(", "]": "[", "}": "{"}
        opened: list[re.Match[str]] = []
        for token in _BRACKETS_AND_QUOTES.finditer(self.text):
            mark = token.group()
            if mark in ("'", '"'):
                return
            if mark in pairs.values():
                opened.append(token)
            elif mark in pairs:
                if not opened or opened[-1].group() != pairs[mark]:
                    self.fail(token.start(), f"{mark!r} closes no {pairs[mark]!r}")
                opened.pop()
        if opened:
            self.fail(opened[-1].start(), f"{opened[-1].group()!r} is never closed")


_BETWEEN = re.compile(r"(?:[\s)\\]|#[^\n]*)*")

# Whole strings and comments are matched so that brackets inside them are stepped over; a quote
# that is matched by itself opens a string without an end, for which the parser has a message.
_BRACKETS_AND_QUOTES = re.compile(
    r"""'''(?:\\.|(?!''').)*'''|\"\"\"(?:\\.|(?!\"\"\").)*\"\"\""""
    r"""|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|\#[^\n]*|[()\[\]{}'"]""",
    re.DOTALL,
)
