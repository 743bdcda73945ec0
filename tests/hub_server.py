"""A server on 127.0.0.1 that speaks as much of the Hugging Face hub's protocol as a download needs."""

import hashlib
import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from huggingface_hub import constants

from lib import hub as lib_hub

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
LARGE = (".safetensors", ".parquet", ".jsonl", ".bin")  # what the hub keeps in LFS, on another host


class Hub:
    """`files` maps "owner/name/path" to bytes; datasets are "datasets/owner/name/path"."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []  # (method, path)
        self.delay = 0.0  # seconds before each answer
        self.lies_about: dict[str, bytes] = {}  # path -> bytes sent instead, under the true ETag
        self.cut_once: set[str] = set()  # paths whose first whole download breaks off halfway
        self.url = ""
        self.cdn = ""  # where large files are said to be; this server by default
        self.moved_to = ""  # another origin, to which every request is sent on for good

    def add(self, repository: str, files: dict[str, bytes]) -> None:
        self.files |= {f"{repository}/{name}": data for name, data in files.items()}

    def asked(self, suffix: str) -> bool:
        return any(path.endswith(suffix) for _, path in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub: Hub = self.server.hub
        path = urlsplit(self.path).path.strip("/")
        hub.requests.append((self.command, path))
        time.sleep(hub.delay)
        if hub.moved_to:
            return self.send(308, {"Location": hub.moved_to + self.path}, b"")
        if path.startswith("api/") and "/tree/" in path:
            repository = path.removeprefix("api/").split("/tree/")[0]
            sizes = {k[len(repository) + 1 :]: len(hub.files[k]) for k in hub.files if k.startswith(repository + "/")}
            entries = [{"type": "file", "path": path, "size": n, "oid": "0" * 40} for path, n in sizes.items()]
            return self.send(200, {"Content-Type": "application/json"}, json.dumps(entries).encode())
        cdn = path.startswith("cdn/")
        repository, _, rest = path.removeprefix("cdn/").partition("/resolve/")
        name = f"{repository}/{rest.partition('/')[2]}"
        data = hub.files.get(name)
        if data is None:
            return self.send(404, {"X-Repo-Commit": COMMIT, "X-Error-Code": "EntryNotFound"}, b"")
        large = name.endswith(LARGE)
        etag = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if large and not cdn:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            headers["Location"] = f"{hub.cdn or hub.url.replace('127.0.0.1', 'localhost')}/cdn/{path}"
            return self.send(302, headers, b"")
        sent = hub.lies_about.get(name, data)
        wanted = self.headers.get("Range", "")
        if wanted and sent:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = int(last) + 1 if last else len(sent)
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(sent)}"
            return self.send(206, headers, sent[int(first) : end])
        cut = self.command == "GET" and name in hub.cut_once
        hub.cut_once -= {name} if cut else set()
        return self.send(200, headers, sent, stop=len(sent) // 2 if cut else None)

    do_HEAD = do_GET

    def send(self, code, headers, data, stop=None) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:stop])
        if stop is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def nothing_within_reach(folder, monkeypatch) -> None:
    """Empty data/mirror, data/models and Hugging Face cache in `folder`; a closed port for a hub; pip offline."""
    monkeypatch.setattr(lib_hub, "MIRROR", folder / "mirror")
    monkeypatch.setattr(lib_hub, "MODELS", folder / "models")
    monkeypatch.setattr(lib_hub, "MOVED", {})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name, value in {"HF_ENDPOINT": "http://127.0.0.1:9", "PIP_NO_INDEX": "1", "PROFILE": "cpu"}.items():
        monkeypatch.setenv(name, value)
    for name in ("DATA_MIRROR", "BASE_MODEL"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def serve():
    """A running Hub; `.url` is its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = hub
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def black_hole(drip: bool = False):
    """The address of a socket that accepts connections and never says a word, or one letter at a time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            with suppress(OSError):
                connection, _ = listener.accept()
                for letter in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: " + b"x" * 99:
                    time.sleep(0.25)
                    connection.send(bytes([letter]))

        if drip:
            threading.Thread(target=talk, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
