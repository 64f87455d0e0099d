"""A gate before gradio's server: it answers with its own files, and fetches nothing for anybody."""

import re

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

# Gradio streams what stands at an address to whoever asks, which makes a relay of the server. A
# scheme of one letter is a drive.
_ADDRESS = re.compile(r"/(?:file[=/]|proxy=)\s*[a-z][a-z0-9+.-]+:", re.IGNORECASE)


class NoAddresses:
    """Middleware that refuses requests for files at addresses elsewhere."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _ADDRESS.search(scope["path"]):
            await PlainTextResponse("addresses are not taken", 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)
