"""HTTP servers of tests, each in a thread of its own."""

from __future__ import annotations

import threading
from http.server import HTTPServer

_POLL_S = 0.02  # how soon a server sees that it is to stop


def serve(server: HTTPServer) -> str:
    """Start a server, and return its address."""
    threading.Thread(target=server.serve_forever, args=(_POLL_S,), daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def stop(server: HTTPServer) -> None:
    """Stop a server, and close its socket."""
    server.shutdown()
    server.server_close()
