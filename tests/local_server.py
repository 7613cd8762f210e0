"""A server on the loopback that a test decides the answers of."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class LocalServer:
    """Hands what is posted to `answer`, and sends its status and text back."""

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, body = outer.answer(self.path, content, self.headers["Authorization"])
                with suppress(OSError):  # a client that gave up waiting has hung up; the test looks at the client
                    self.send_response(status)
                    if status in (301, 302, 303, 307, 308):
                        self.send_header("Location", body)
                    self.end_headers()
                    self.wfile.write(body.encode())

            do_GET = do_POST

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, path: str, content: Any, authorization: str | None) -> tuple[int, str]:
        """(status, text); for a redirection, where to."""
        raise NotImplementedError

    @contextmanager
    def running(self) -> Iterator[None]:
        """Answers inside the block."""
        thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            self.http.shutdown()
            thread.join()
            self.http.server_close()
