"""A W&B server on loopback, small enough to read: it keeps what clients upload, run by run.

It answers what the client of wandb 0.31 asks while a run is started, resumed, logged to and finished. A run
that has history is resumed with that history's last line, as the real server does.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "k" * 40
"""An API key of the right length."""


@dataclass
class Artifact:
    """An artifact as it was logged: what it holds by path, and the files of it that were uploaded."""

    name: str
    type: str
    metadata: dict[str, Any]
    contents: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


@dataclass
class Server:
    """What the server holds: history lines, and the last word about each run, by run id; views, artifacts."""

    url: str
    history: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)
    """All that was sent, in the order in which it came."""
    views: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    projects: tuple[str, ...] = ("trial",)
    """Those in which views may be looked for."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    broken: threading.Event = field(default_factory=threading.Event)
    """While set, nothing that is uploaded is taken."""
    forgetful: threading.Event = field(default_factory=threading.Event)
    """While set, the tail of a history is not known yet, only the number of its lines."""

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        """The history of a run in the order of its lines, without W&B's own fields."""
        with self.lock:
            lines = sorted(self.history.get(run_id, {}).items())
        return [{k: v for k, v in line.items() if not k.startswith("_")} for _, line in lines]

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data that answers a query; an empty one for whatever a client can do without."""
        name = variables.get("name") or variables.get("run") or ""
        if "upsertBucket" in query:
            with self.lock:
                known = self.runs.setdefault(name, {})
                known.update({k: v for k, v in variables.items() if v is not None})
            return {"upsertBucket": {"bucket": self._bucket(name), "inserted": False}}
        if "RunResumeStatus" in query:
            return {"model": {"id": "p", "name": "p", "entity": None, "bucket": self._resumable(name)}}
        if "createRunFiles" in query:
            files = [{"name": f, "uploadUrl": f"{self.url}/upload/{name}/{f}"} for f in variables["files"]]
            return {"createRunFiles": {"runID": name, "uploadHeaders": [], "files": files}}
        if "fragment RunFragment" in query:
            found = self._resumable(name)
            return {"project": {"run": found and {**found, "projectId": 1, "state": "finished"}}}
        if "rtifact" in query:
            return self._about_artifacts(query, variables)
        if "allViews" in query:
            wanted = [{"node": view} for view in self.views if view["name"] == variables["viewName"]]
            known = variables["projectName"] in self.projects
            return {"project": {"allViews": {"edges": wanted}} if known else None}
        if "upsertView" in query:
            return {"upsertView": {"view": self._save(variables), "inserted": "id" not in variables}}
        if "viewer" in query:
            return {"viewer": {"id": "u", "entity": "someone", "username": "someone", "flags": "{}"}}
        return {}

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        """Take a piece of a run's history."""
        piece = body.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        with self.lock:
            lines = self.history.setdefault(run_id, {})
            for place, line in enumerate(piece["content"], piece["offset"]):
                lines[place] = json.loads(line)
            if body.get("complete"):
                self.finished.add(run_id)

    def _about_artifacts(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        asked = variables.get("input", {})
        if "createArtifact(" in query:
            made = Artifact(
                asked["artifactCollectionName"], asked["artifactTypeName"], json.loads(asked["metadata"])
            )
            with self.lock:
                self.artifacts.append(made)
                number = str(len(self.artifacts) - 1)
            found = {"id": number, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": found}}
        if change := re.search(r"(createArtifactManifest|updateArtifactManifest)\(", query):
            number = variables.get("artifactID") or variables["artifactManifestID"]
            file = {"id": number, "uploadUrl": f"{self.url}/artifact/{number}/", "uploadHeaders": []}
            return {change[1]: {"artifactManifest": {"id": number, "file": file}}}
        if "createArtifactFiles" in query:
            nodes = [
                {
                    "uploadUrl": f"{self.url}/artifact/{file['artifactID']}/{file['name']}",
                    "uploadHeaders": [],
                    "artifact": {"id": file["artifactID"]},
                }
                for file in asked["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if "commitArtifact" in query:
            self.artifacts[int(variables["artifactID"])].committed = True
            return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}
        return {"project": None} if "query ArtifactType" in query else {}

    def put(self, number: str, name: str, body: bytes) -> None:
        """Take a file of an artifact; without a name it is the list of what the artifact holds."""
        artifact = self.artifacts[int(number)]
        with self.lock:
            if name:
                artifact.files[name] = body
            else:
                artifact.contents = json.loads(body)["contents"]

    def _save(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Put a view in the place of the one with its id; without an id it is another one."""
        with self.lock:
            saved = {"id": f"view-{len(self.views)}", **variables}
            self.views = [view for view in self.views if view["id"] != saved["id"]] + [saved]
        return saved

    def _bucket(self, name: str) -> dict[str, Any]:
        known = self.runs[name]
        entity = {"id": "e", "name": known.get("entity", "someone")}
        project = {"id": "p", "name": known.get("project", "p"), "entity": entity}
        lines = len(self.history.get(name, {}))
        return {"id": name, "name": name, "displayName": name, "project": project, "historyLineCount": lines}

    def _resumable(self, name: str) -> dict[str, Any] | None:
        if name not in self.runs:
            return None
        with self.lock:
            tail = [line for _, line in sorted(self.history.get(name, {}).items())][-1:]
        tail = [] if self.forgetful.is_set() else tail
        return {
            **self._bucket(name),
            "summaryMetrics": json.dumps(tail[0] if tail else {}),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(line) for line in tail]),
            "eventsTail": "[]",
            "config": self.runs[name].get("config", "{}"),
            "tags": self.runs[name].get("tags", []),
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }


@contextmanager
def wandb_server() -> Iterator[Server]:
    """A server for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            status, data = self.handle_request(body)
            text = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def handle_request(self, body: bytes) -> tuple[int, Any]:
            with server.lock:
                server.said.append(f"{self.path} {body.decode(errors='replace')}")
            stream = re.fullmatch(r"/files/[^/]*/[^/]*/([^/]+)/file_stream", self.path)
            if self.path == "/graphql":
                asked = json.loads(body)
                return 200, {"data": server.graphql(asked["query"], asked.get("variables") or {})}
            if put := re.fullmatch(r"/artifact/(\d+)/(.*)", self.path):
                server.put(put[1], put[2], body)
                return 200, {}
            if stream and server.broken.is_set():
                return 400, {"error": "broken"}
            if stream:
                server.stream(stream[1], json.loads(body))
            return 200, {}

        do_GET = do_POST = do_PUT = answer  # noqa: N815 - the names that http.server looks up

    class Listening(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that hangs up is no news."""

    listening = Listening(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{listening.server_port}")
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()


@contextmanager
def deaf_server() -> Iterator[str]:
    """Accepts, because the system does, and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def closed_port() -> Iterator[str]:
    """Nobody listens there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
