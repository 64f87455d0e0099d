"""The command line of ``demo.py``."""

import logging
import sys
from collections.abc import Sequence

from dust3r.demo import arguments, batch, server
from dust3r.demo.alignment import Alignment
from dust3r.training import checkpoint
from dust3r.utils.device import chosen_device

log = logging.getLogger(__name__)

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, checkpoint.CheckpointError)


def main(methods: Sequence[type[Alignment]], given: list[str] | None = None) -> int:
    """Serve the page until it is stopped, or write files; the exit status.

    Args:
        methods: alignments to choose from, the usual one first.
    """
    args = arguments.parse(methods, given)
    level = logging.WARNING if args.silent else logging.INFO
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        args.device = chosen_device(args.device)
        if args.images:
            written = batch.run(args)
            sys.stdout.write("".join(f"{path}\n" for path in written))
        else:
            server.serve(args, methods)
    except USER_ERRORS as error:
        # What a user wrote is mended by the message, not by the stack.
        log.error("%s", error)
        log.debug("raised here", exc_info=True)
        return 2
    return 0
