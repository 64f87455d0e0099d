"""What a specification says of one class, without an object of it."""

import inspect
from typing import Any

from dust3r.utils.spec import Registry, build


def arguments_of(text: str, cls: type, kind: str, defaults: bool = False) -> dict[str, Any]:
    """The arguments by name that a specification ``NAME(...)`` gives to ``cls``.

    Args:
        text: the specification.
        cls: the only class that it may name.
        kind: what that is, in the singular, for messages.
        defaults: include those that the specification leaves to ``cls``.

    Raises:
        SpecError: it is no specification, or its arguments are not those of ``cls``.
        ValueError: it is one of something else.
    """
    signature = inspect.signature(cls)

    def arguments(*args: Any, **kwargs: Any) -> dict[str, Any]:
        bound = signature.bind(*args, **kwargs)
        if defaults:
            bound.apply_defaults()
        return dict(bound.arguments)

    arguments.__signature__ = signature
    names = Registry(kind)
    names.register(cls.__name__)(arguments)
    found = build(text, names)
    if not isinstance(found, dict):
        raise ValueError(f"{text!r} is no {cls.__name__}(...), which a {kind} has to be")
    return found
