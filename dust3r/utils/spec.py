"""Specification strings: the small language of ``--model``, ``--train_dataset`` and the rest.

A specification looks like Python and is never evaluated as Python. It is parsed, checked as a
whole against the few forms that are allowed and the names that are registered, and only then
built, so that a mistake anywhere in it costs no time and nothing foreign ever runs.
"""

import ast
import difflib
import inspect
import keyword
import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from dust3r.utils.spec_source import ALLOWED, MAX_DEPTH, Source, SpecError

__all__ = ["DATASETS", "LOSSES", "MODELS", "Registry", "SpecError", "build"]

T = TypeVar("T")

MAX_LENGTH = 100_000
MAX_INTEGER = 2**63
_LISTED_NAMES = 30


class Registry:
    """The names that specification strings of one kind may use, and the objects they stand for.

    Args:
        kind: what the names are, in the singular, for messages ("model", "loss", "dataset").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._objects: dict[str, object] = {}

    def register(self, name: str | None = None) -> Callable[[T], T]:
        """Decorator that files a class, a function or any value under ``name``.

        Args:
            name: the name people type; by default the object's own ``__name__``.

        Raises:
            ValueError: no name is to be had, it is not one that a specification could contain, or
                it belongs to another object already.
        """

        def add(item: T) -> T:
            key = name if name is not None else getattr(item, "__name__", None)
            if key is None:
                raise ValueError(f"{item!r} has no __name__; give one: register('name')({item!r})")
            if not key.isidentifier() or keyword.iskeyword(key) or key in ("inf", "float"):
                raise ValueError(f"{key!r} cannot name a {self.kind} in a specification string")
            taken = self._objects.setdefault(key, item)
            if taken is not item:
                raise ValueError(
                    f"the {self.kind} name {key!r} is taken by {taken!r}; register {item!r} under "
                    "another one"
                )
            return item

        return add

    def get(self, name: str) -> object:
        """The object registered as ``name``.

        Raises:
            SpecError: nothing is registered under it; the message names the nearest ones.
        """
        if name not in self._objects:
            raise SpecError(self._unknown(name))
        return self._objects[name]

    def __contains__(self, name: object) -> bool:
        return name in self._objects

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._objects))

    def __len__(self) -> int:
        return len(self._objects)

    def _unknown(self, name: str) -> str:
        return f"unknown {self.kind} {name!r}; {_hint(name, list(self), 'registered')}"


MODELS = Registry("model")
LOSSES = Registry("loss")
DATASETS = Registry("dataset")


def build(text: str, registry: Registry) -> object:
    """The object that a specification string describes.

    The string may hold calls of registered names with positional and keyword arguments, registered
    names by themselves, numbers, strings, None, booleans, tuples, lists, dicts, ``inf``,
    ``float('inf')``, signs before numbers, and the operators ``@ + *``, which act on the built
    objects with Python's precedence. Line breaks, indentation and ``#`` comments may stand
    anywhere outside quotes. All of it is checked before the first object is built.

    Args:
        text: the specification, at most ``MAX_LENGTH`` characters and ``MAX_DEPTH`` levels deep.
        registry: the names it may use.

    Returns:
        What the outermost expression gives: an object, or a list for ``"[None]"``.

    Raises:
        SpecError: anything but the above, an unknown name, or arguments that the called object
            does not take. Other errors of constructors pass through unchanged.
    """
    if len(text) > MAX_LENGTH:
        raise SpecError(
            f"the specification has {len(text)} characters, more than the {MAX_LENGTH} allowed; "
            f"it begins {text[:60]!r}"
        )
    source = Source(text)
    construct = _Translator(source, registry).translate(source.parse(), depth=0)
    return construct()


_Thunk = Callable[[], object]


@dataclass
class _Translator:
    """Turns syntax into functions that build it, refusing what the language does not have."""

    source: Source
    registry: Registry

    def translate(self, node: ast.expr, depth: int) -> _Thunk:
        if depth > MAX_DEPTH:
            self._refuse(node, f"nested too deeply: at most {MAX_DEPTH} levels are allowed")
        match node:
            case ast.Constant():
                return self._constant(node)
            case ast.Name():
                return self._name(node)
            case ast.Call():
                return self._call(node, depth)
            case ast.BinOp():
                return self._operation(node, depth)
            case ast.UnaryOp():
                return self._sign(node, depth)
            case ast.Tuple() | ast.List():
                kind = tuple if isinstance(node, ast.Tuple) else list
                items = [self.translate(item, depth + 1) for item in node.elts]
                return lambda: kind(item() for item in items)
            case ast.Dict():
                return self._dict(node, depth)
        self._refuse_form(node, depth)

    def _constant(self, node: ast.Constant) -> _Thunk:
        value = node.value
        if not isinstance(value, (int, float, str, bool, type(None))):
            self._refuse(node, f"a value of type {type(value).__name__} is not allowed; {ALLOWED}")
        if isinstance(value, int) and value > MAX_INTEGER:
            self._refuse(node, f"integers above {MAX_INTEGER} are not allowed")
        return lambda: value

    def _name(self, node: ast.Name) -> _Thunk:
        if node.id == "inf":
            return lambda: math.inf
        item = self._registered(node)
        return lambda: item

    def _registered(self, node: ast.Name) -> object:
        try:
            return self.registry.get(node.id)
        except SpecError as error:
            self._refuse(node, str(error))

    def _call(self, node: ast.Call, depth: int) -> _Thunk:
        if not isinstance(node.func, ast.Name):
            # The inner mistake is the telling one: the attribute or the name it hangs on.
            self.translate(node.func, depth + 1)
            self._refuse(node, f"only a registered name can be called; {ALLOWED}")
        if node.func.id == "float":
            return self._float(node)
        target = self._registered(node.func)
        if not callable(target):
            self._refuse(node, f"{node.func.id!r} is a value and takes no arguments")
        keywords: dict[str, ast.keyword] = {}
        for word in node.keywords:
            if word.arg is None:
                self._refuse(word, f"unpacking with ** is not allowed; {ALLOWED}")
            if word.arg in keywords:
                self._refuse(word, f"argument {word.arg!r} is given twice")
            keywords[word.arg] = word
        positional = [self.translate(item, depth + 1) for item in node.args]
        named = {name: self.translate(word.value, depth + 1) for name, word in keywords.items()}
        self._check_arguments(node, target, keywords)

        def construct() -> object:
            args = [item() for item in positional]
            kwargs = {name: item() for name, item in named.items()}
            try:
                return target(*args, **kwargs)
            except TypeError as error:
                # Where a constructor hands **kwargs on, only the one that gets them can tell.
                found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
                if found is None or found.group(1) not in keywords:
                    raise
                self._refuse_keyword(node, target, keywords[found.group(1)], error)

        return construct

    def _check_arguments(
        self, node: ast.Call, target: Callable[..., object], keywords: dict[str, ast.keyword]
    ) -> None:
        try:
            signature = inspect.signature(target)
        except (TypeError, ValueError):
            return
        try:
            signature.bind(*node.args, **keywords)
        except TypeError as error:
            accepted = _argument_names(target)
            if not _takes_any_keyword(signature):
                for name, word in keywords.items():
                    if name not in accepted:
                        self._refuse_keyword(node, target, word, error)
            takes = ", ".join(accepted) or "no arguments"
            self._refuse(node, f"{node.func.id}: {error}; it takes: {takes}", error)

    def _refuse_keyword(
        self, node: ast.Call, target: Callable[..., object], word: ast.keyword, error: TypeError
    ) -> NoReturn:
        accepted = _argument_names(target)
        near = difflib.get_close_matches(word.arg, accepted, n=1)
        suggestion = f", did you mean {near[0]!r}?" if near else ";"
        takes = ", ".join(accepted) or "no keywords"
        message = f"{node.func.id} has no argument {word.arg!r}{suggestion} it takes: {takes}"
        self._refuse(word, message, error)

    def _float(self, node: ast.Call) -> _Thunk:
        match node:
            case ast.Call(args=[ast.Constant(value="inf" | "+inf")], keywords=[]):
                return lambda: math.inf
            case ast.Call(args=[ast.Constant(value="-inf")], keywords=[]):
                return lambda: -math.inf
        self._refuse(node, "float takes 'inf' or '-inf' here; write other numbers as they are")

    def _operation(self, node: ast.BinOp, depth: int) -> _Thunk:
        # Sums lean to the left, so that a long one is deep without being nested.
        steps: list[tuple[ast.BinOp, _Thunk]] = []
        first: ast.expr = node
        while isinstance(first, ast.BinOp):
            if type(first.op) not in _OPERATORS:
                self.source.fail(
                    self.source.after(first.left), f"this operator is not allowed; {ALLOWED}"
                )
            steps.append((first, self.translate(first.right, depth + 1)))
            first = first.left
        start = self.translate(first, depth + 1)

        def fold() -> object:
            value = start()
            for step, right in reversed(steps):
                value = self._combine(step, value, right())
            return value

        return fold

    def _combine(self, node: ast.BinOp, left: object, right: object) -> object:
        symbol, combine = _OPERATORS[type(node.op)]
        refusal = f"{symbol!r} cannot join {_kind(left)} and {_kind(right)}"
        # Python would repeat and concatenate these, which no specification means and which
        # could fill the memory.
        if any(isinstance(x, (str, bool, type(None), tuple, list, dict)) for x in (left, right)):
            self.source.fail(self.source.after(node.left), refusal)
        try:
            value = combine(left, right)
        except TypeError as error:
            self.source.fail(self.source.after(node.left), f"{refusal}: {error}", error)
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            self.source.fail(self.source.after(node.left), f"gives more than {MAX_INTEGER}")
        return value

    def _sign(self, node: ast.UnaryOp, depth: int) -> _Thunk:
        if not isinstance(node.op, (ast.USub, ast.UAdd)):
            self._refuse(node, f"this operator is not allowed; {ALLOWED}")
        operand = self.translate(node.operand, depth + 1)
        negative = isinstance(node.op, ast.USub)

        def signed() -> object:
            value = operand()
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                self._refuse(node, f"a sign stands before numbers only, not {_kind(value)}")
            return -value if negative else value

        return signed

    def _dict(self, node: ast.Dict, depth: int) -> _Thunk:
        pairs: list[tuple[ast.expr, _Thunk, _Thunk]] = []
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                self._refuse(value, f"unpacking with ** is not allowed; {ALLOWED}")
            pairs.append((key, self.translate(key, depth + 1), self.translate(value, depth + 1)))

        def fill() -> dict[object, object]:
            filled: dict[object, object] = {}
            for key_node, make_key, make_value in pairs:
                key, value = make_key(), make_value()
                try:
                    filled[key] = value
                except TypeError as error:
                    self._refuse(key_node, f"{_kind(key)} cannot be a key of a dict", error)
            return filled

        return fill

    def _refuse_form(self, node: ast.expr, depth: int) -> NoReturn:
        match node:
            case ast.Attribute(value=value) | ast.Subscript(value=value):
                self.translate(value, depth + 1)
                index = self.source.after(value)
            case _:
                index = self.source.start(node)
        form = _FORMS.get(type(node), "this")
        self.source.fail(index, f"{form} is not allowed; {ALLOWED}")

    def _refuse(
        self, node: ast.expr | ast.keyword, message: str, cause: BaseException | None = None
    ) -> NoReturn:
        self.source.fail(self.source.start(node), message, cause)


_OPERATORS: dict[type[ast.operator], tuple[str, Callable[[object, object], object]]] = {
    ast.MatMult: ("@", operator.matmul),
    ast.Add: ("+", operator.add),
    ast.Mult: ("*", operator.mul),
}

_FORMS: dict[type[ast.expr], str] = {
    ast.Attribute: "an attribute",
    ast.Subscript: "a subscript",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.Lambda: "a lambda",
    ast.JoinedStr: "an f-string",
    ast.NamedExpr: "an assignment",
    ast.Starred: "unpacking with *",
    ast.Set: "a set",
    ast.Compare: "a comparison",
    ast.BoolOp: "'and' or 'or'",
    ast.IfExp: "a condition",
    ast.Await: "'await'",
    ast.Yield: "'yield'",
    ast.YieldFrom: "'yield'",
}


def _hint(name: str, known: list[str], what: str) -> str:
    if not known:
        return f"nothing is {what}: import the module that defines it first"
    by_folded = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(name.casefold(), list(by_folded), n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(by_folded[match]) for match in near) + "?"
    listed = ", ".join(known[:_LISTED_NAMES]) + (", ..." if len(known) > _LISTED_NAMES else "")
    return f"{what} are: {listed}"


def _argument_names(target: Callable[..., object]) -> list[str]:
    """Names that ``target`` takes, those of its base classes too where it hands **kwargs on."""
    names: list[str] = []
    owners = inspect.getmro(target) if inspect.isclass(target) else (target,)
    for position, owner in enumerate(owners):
        if position and "__init__" not in vars(owner):
            continue
        try:
            signature = inspect.signature(owner)
        except (TypeError, ValueError):
            break
        for parameter in signature.parameters.values():
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and parameter.name not in names:
                names.append(parameter.name)
        if not _takes_any_keyword(signature):
            break
    return names


def _takes_any_keyword(signature: inspect.Signature) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
