"""A local HTTP server whose answers each test decides."""

import contextlib
import http.server
import io
import os
import tarfile
import threading
from types import SimpleNamespace
from urllib.parse import urlsplit


def isolated(tmp_path, monkeypatch):
    """An empty cache, and nothing of the user's own: no home, credentials or other caches."""
    for name in list(os.environ):
        if name.startswith(("KAGGLE", "KERASMTL", "HF_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def packed(folder, top="."):
    """The bytes of a .tar.gz of a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, arcname=top)
    return buffer.getvalue()


def cut_off(handler, body, share=0.5):
    """Answer with less than was announced."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: int(share * len(body))])


@contextlib.contextmanager
def serving(routes):
    """Serve `routes`: by path, (status, headers, body) or a function of the request's handler.

    Yields an object with `url`, and `seen`: (method, path with query, headers) of each request.
    """
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.command, self.path, dict(self.headers)))
            answer = routes.get(urlsplit(self.path).path, (404, {}, b"nothing here"))
            if callable(answer):
                return answer(self)
            status, headers, body = answer
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address):
            pass  # clients that hang up are what some tests are about

    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield SimpleNamespace(url=f"http://127.0.0.1:{running.server_port}", seen=seen)
        finally:  # or the thread polls a closed socket without a pause
            running.shutdown()
            thread.join()
