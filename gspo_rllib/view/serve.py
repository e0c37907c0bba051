"""Serves a page to the browser of this machine, made anew when it is reloaded after what it shows has changed."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gspo_rllib.errors import GSPOError, SettingError

HOST = "127.0.0.1"
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


def server(make: Callable[[], str], *, port: int) -> ThreadingHTTPServer:
    """A server of one page; ``serve_forever`` runs it.

    Args:
        make: Makes the page; called with every request.
        port: Where it listens, on this machine only; 0 takes a free one.

    Raises:
        SettingError: The port is taken, or may not be used.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answers with the page."""
            named = self.headers.get("Host", "").partition(":")[0]
            # A page of elsewhere could otherwise read this one under a name of its own that leads here.
            if self.path != "/" or named not in (HOST, "localhost"):
                self.send_error(404)
                return
            try:
                text, code = make(), 200
            except GSPOError as error:
                text, code = f"<!DOCTYPE html><meta charset=utf-8><title>gspo-rllib view</title>{_plain(error)}", 500
            content = text.encode("utf-8")
            self.send_response(code)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise SettingError(f"--port {port}: nothing can listen there: {error}. Name another, or 0 for any.") from error


def _plain(error: GSPOError) -> str:
    import html

    return html.escape(str(error))
