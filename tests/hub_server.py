"""A small real HTTP server that speaks what is needed of the Hugging Face hub: revisions, trees, files, ranges."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """Repositories by id: commits, branches, and the files of every commit. What went wrong on purpose is set here.

    `cut_after`: a file's connection is closed after so many bytes, so many times. `corrupt`: files that come with their
    last byte changed. `requests` lists what was asked for: (path, first byte).
    """

    url: str = ""
    refs: dict[tuple[str, str], str] = field(default_factory=dict)
    files: dict[tuple[str, str], Mapping[str, bytes]] = field(default_factory=dict)
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    refuse: set[str] = field(default_factory=set)
    requests: list[tuple[str, int]] = field(default_factory=list)

    def add(self, repository: str, files: Mapping[str, bytes], *, branch: str = "main") -> str:
        """A new commit of a repository on a branch; its hash."""
        content = repr(sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items()))
        commit = hashlib.sha1(f"{repository}{content}".encode()).hexdigest()
        self.files[repository, commit], self.refs[repository, branch] = files, commit
        return commit

    def tree(self, repository: str, commit: str) -> list[dict[str, Any]]:
        """The listing of a commit, as the hub gives it: large files with their SHA-256, small ones with git's SHA-1."""
        listed = []
        for name, data in self.files[repository, commit].items():
            blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            listed.append(entry)
        return listed


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port of this machine, until the end."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def do_GET(self) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._api("/".join(parts[2:4]), parts[4:])
            elif len(parts) > 4 and parts[2] == "resolve":
                self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self._json({"error": "Entry not found"}, 404)

        def _api(self, repository: str, rest: list[str]) -> None:
            revision = rest[1] if len(rest) > 1 else "main"
            commit = hub.refs.get((repository, revision), revision)
            if (repository, commit) not in hub.files:
                self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            elif rest[:1] == ["tree"]:
                self._json(hub.tree(repository, commit))
            else:
                self._json({"id": repository, "modelId": repository, "sha": commit, "siblings": [], "tags": []})

        def _file(self, repository: str, commit: str, name: str) -> None:
            data = hub.files.get((repository, commit), {}).get(name)
            if data is None or name in hub.refuse:
                self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            if name in hub.corrupt:
                data = data[:-1] + bytes([data[-1] ^ 1])
            first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            hub.requests.append((name, first))
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - first))
            self.end_headers()
            cuts = hub.cut_after.get(name)
            if cuts:
                self.wfile.write(data[first : first + cuts.pop(0)])
                self.close_connection = True
            else:
                self.wfile.write(data[first:])

        def _json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
