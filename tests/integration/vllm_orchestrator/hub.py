"""A hub in miniature: a real HTTP server that answers from a folder as Hugging Face's does.

Documents come at once, weights by a redirect to where they are stored.
"""

import json
import re
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_right"
GATED = "owner/gated"


class Hub(ThreadingHTTPServer):
    """Counts what it sent, in bytes, and can be told to be away."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder = folder
        self.sent = 0
        self.asked: list[str] = []
        self.away = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        found = re.fullmatch(r"/([^/]+/[^/]+)/(?:resolve/([^/]+)|stored)/([^/]+)", self.path)
        assert found is not None, self.path
        model, file = found[1], self.server.folder / found[1] / found[3]
        if self.server.away:
            self._say(503)
        elif model == GATED and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._say(401, {"X-Error-Code": "GatedRepo"})
        elif not file.parent.is_dir():
            self._say(401, {"X-Error-Code": "RepoNotFound"})
        elif not file.is_file():
            self._say(404, {"X-Error-Code": "EntryNotFound"})
        elif found[2] and file.suffix in (".safetensors", ".gguf"):
            self._say(302, {"Location": f"/{model}/stored/{file.name}", "X-Linked-Size": str(file.stat().st_size)})
        else:
            self._send(file.read_bytes())

    def _send(self, content: bytes) -> None:
        tag = f'"{hash(content)}"'
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.headers.get("If-None-Match") == tag:
            self._say(304, {"ETag": tag})
        elif wanted is not None and int(wanted[1]) >= len(content):
            self._say(416, {"Content-Range": f"bytes */{len(content)}"})
        elif wanted is not None:
            self._say(206, {"ETag": tag}, content[int(wanted[1]) : int(wanted[2]) + 1])
        else:
            self._say(200, {"ETag": tag}, content)

    def _say(self, status: int, headers: Mapping[str, str] | None = None, content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.server.sent += len(content)

    def log_message(self, format: str, *args: object) -> None:
        """Tests are quiet."""


@contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def weights(shapes: Mapping[str, tuple[int, ...]], *, padding: int = 0) -> bytes:
    """A safetensors file of bfloat16 zeros; `padding` makes its header longer."""
    header: dict[str, object] = {"__metadata__": {"note": "x" * padding}}
    place = 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(place)
