"""What command lines share: messages, errors of the user, exit status."""

import argparse
import logging
import sys
from collections.abc import Callable, Iterable


def exit_status(
    run: Callable[[argparse.Namespace], Iterable[object]],
    args: argparse.Namespace,
    errors: tuple[type[Exception], ...],
) -> int:
    """Run a command and print what it returns, a line each; 0, or 2 after an error of the user.

    Args:
        run: the command; messages are under the name of its module.
        args: its arguments; with ``silent``, warnings alone are told.
        errors: what a user mends by the message, not by the stack, which is told at debug level.
    """
    level = logging.WARNING if args.silent else logging.INFO
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    try:
        lines = run(args)
    except errors as error:
        log = logging.getLogger(run.__module__)
        log.error("%s", error)
        log.debug("raised here", exc_info=True)
        return 2
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0
