"""The demo's server: its folders, its address, and its end."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dust3r.demo import weights
from dust3r.demo.alignment import Alignment
from dust3r.demo.storage import MOST_BYTES, Workspace

if TYPE_CHECKING:
    import gradio as gr

    from dust3r.demo.events import Events

log = logging.getLogger(__name__)

# A reconstruction of many images takes a gigabyte of memory.
MOST_SESSIONS = 64


def serve(args: argparse.Namespace, methods: Sequence[type[Alignment]]) -> None:
    """Answer requests until interrupted (Ctrl-C, SIGTERM).

    Args:
        methods: alignments that the page offers.

    Raises:
        ValueError: the address or port cannot be listened on, or an argument is wrong.
        FileNotFoundError, dust3r.training.checkpoint.CheckpointError: see ``weights.load``.
    """
    # A port in use should not cost the time to read a large checkpoint.
    check_address(args.server_name, args.server_port)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with open_workspace(args.tmp_dir) as workspace:
        model, name = weights.load(args.weights, args.model_name)
        size = args.image_size or weights.native_size(model)
        # Gradio reads its folders from the environment on import.
        from dust3r.demo.events import Events

        events = Events(model.to(args.device), name, size, args.batch_size, workspace)
        page = launch(events, methods, args.server_name, args.server_port, args.share)
        try:
            sys.stdout.write(f"{name} on {args.device} is at {page.local_url}\n")
            if page.share_url:
                sys.stdout.write(f"and for everybody at {page.share_url}\n")
            sys.stdout.flush()
            stop.wait()
        except KeyboardInterrupt:
            log.info("interrupted")
        finally:
            page.close(verbose=False)


@contextmanager
def open_workspace(parent: Path | None) -> Iterator[Workspace]:
    """Folders that all files of this process go to, gradio's and other libraries' alike.

    To be entered before gradio is imported. Raises FileNotFoundError as ``Workspace``.
    """
    workspace = Workspace(parent)
    os.environ["GRADIO_TEMP_DIR"] = str(workspace.served)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(workspace.served)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    before, tempfile.tempdir = tempfile.tempdir, str(workspace.root)
    try:
        yield workspace
    finally:
        tempfile.tempdir = before
        workspace.close()


def launch(
    events: Events,
    methods: Sequence[type[Alignment]],
    name: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
) -> gr.Blocks:
    """Start to serve the page in threads of this process.

    Raises ValueError where the address cannot be listened on.
    """
    from starlette.middleware import Middleware

    from dust3r.demo.gate import NoAddresses
    from dust3r.demo.page import CSS, HEAD, build, theme

    page = build(events, methods)
    page.queue(max_size=32, api_open=False)
    try:
        page.launch(
            server_name=name,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            max_file_size=MOST_BYTES,
            state_session_capacity=MOST_SESSIONS,
            allowed_paths=[],
            theme=theme(),
            css=CSS,
            head=HEAD,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            app_kwargs={"middleware": [Middleware(NoAddresses)]},
        )
    except OSError as error:
        raise ValueError(f"cannot listen on {name}: {error}") from error
    return page


def check_address(name: str, port: int | None) -> None:
    """Raises ValueError where ``name`` is no address of this machine or ``port`` is in use."""
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the server does: a port that waits for late packets is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((name, port or 0))
        except OSError as error:
            if port is None or isinstance(error, socket.gaierror):
                raise ValueError(
                    f"cannot listen on --server_name {name} ({error.strerror}): give an address of "
                    "this machine, such as 127.0.0.1 or 0.0.0.0"
                ) from error
            raise ValueError(
                f"cannot listen on port {port} of {name} ({error.strerror}): give another "
                "--server_port, or leave it out to take a free one"
            ) from error
