"""Serves the built book on this machine, packed as GitHub Pages packs it.

Run by `make serve`. Pages opened as files have no modules, workers or requests;
served ones have.
"""

import functools
import gzip
import io
import sys
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGES = Path(__file__).resolve().parents[1] / "_build" / "html"
PACKED = {".css", ".html", ".js", ".json", ".mjs", ".svg", ".txt", ".wasm", ".xml"}


@functools.lru_cache(maxsize=256)
def packed(path, changed):
    """The file as gzip packs it; `changed` is its time, so that a new build counts."""
    return gzip.compress(path.read_bytes(), compresslevel=6, mtime=0)


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # one connection for many files

    def send_head(self):
        path = Path(self.translate_path(self.path))
        if self.path.split("?")[0].endswith("/"):
            path /= "index.html"
        takes = "gzip" in self.headers.get("Accept-Encoding", "")
        if not (takes and path.suffix in PACKED and path.is_file()):
            return super().send_head()
        body = packed(path, path.stat().st_mtime_ns)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return io.BytesIO(body)

    def end_headers(self):
        self.send_header("Vary", "Accept-Encoding")
        self.send_header("Cache-Control", "no-cache")  # asks again after a new build
        super().end_headers()

    def log_message(self, *args):
        pass


def server(folder=PAGES, port=0):
    """A server of `folder` for this machine only; port 0 takes any free one."""
    handler = functools.partial(Handler, directory=str(folder))
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


def main():
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    if not (PAGES / "index.html").is_file():
        sys.exit("There is no book to serve yet: make book")
    try:
        with server(port=port) as http:
            print(f"The book: http://127.0.0.1:{port}/ (Ctrl-C ends it)", flush=True)
            http.serve_forever()
    except KeyboardInterrupt:
        pass
    except OSError as error:
        sys.exit(f"Port {port}: {error.strerror}. Take another: make serve PORT=8001")


if __name__ == "__main__":
    main()
