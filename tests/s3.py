"""An S3 server on this machine, and a connection to it that can be told to break."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from seal_ray.storage.paths import ObjectPath

PATIENCE = 60.0
SERVER = """
import io, sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

moto, one_by_one = DomainDispatcherApplication(create_backend_app), threading.Lock()

def serve(environ, start):
    if not {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"} & environ.keys():
        return moto(environ, start)
    # Moto compares and then puts, which S3 does at once. A body that never comes must not hold up others.
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    assert len(body) == int(environ["CONTENT_LENGTH"]), "cut off"
    with one_by_one:
        return moto({**environ, "wsgi.input": io.BytesIO(body)}, start)

run_simple("127.0.0.1", int(sys.argv[1]), serve, threaded=True)
"""
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-may-see",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The address of an S3 server in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", SERVER, str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait(address, server)
            yield address
        finally:
            server.kill()


def _wait(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline or server.poll() is not None:
                raise
            time.sleep(0.05)


def tell(address: str, path: str, method: str, body: bytes = b"") -> None:
    """Make a request without a signature."""
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"{address}{path}", body or None, headers, method=method)
    urllib.request.urlopen(request, timeout=10).close()


@contextlib.contextmanager
def bucket_at(address: str, name: str, cache: os.PathLike[str]) -> Iterator[ObjectPath]:
    """A new bucket, with the environment that leads there."""
    tell(address, f"/{name}", "PUT")
    with pytest.MonkeyPatch.context() as patch:
        for variable in [one for one in os.environ if one.startswith("AWS_")]:
            patch.delenv(variable)
        for variable, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(variable, value)
        patch.setenv("SEAL_RAY_CACHE", str(cache))
        yield ObjectPath(name)


@dataclass
class Proxy:
    """Passes connections on, until a request to put something whose path holds `needle`.

    Of that it passes on a part; from then on connections are cut (`drop`) or stand still (`stall`) until it
    is healed. When it is the answer that shall be lost (`answer`) the request is passed on as a whole.
    """

    target: int  # port
    port: int = 0
    fault: str = ""  # drop, stall, answer
    needle: bytes = b""
    struck: threading.Event = field(default_factory=threading.Event)
    open: list[socket.socket] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def break_at(self, fault: str, needle: str) -> None:
        """Fail at the next put of something whose path holds the needle."""
        self.fault, self.needle = fault, needle.encode()

    def heal(self) -> None:
        """Pass everything on again, on new connections."""
        self.fault, self.needle = "", b""
        self.struck.clear()
        for connection in self.open:
            connection.close()
        self.open.clear()


@contextlib.contextmanager
def proxy_to(address: str) -> Iterator[Proxy]:
    """A proxy before the server at `address`."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy = Proxy(int(address.rpartition(":")[2]), listening.getsockname()[1])
        threading.Thread(target=_accept, args=(proxy, listening), daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.heal()


def _accept(proxy: Proxy, listening: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed
        while True:
            connection, _ = listening.accept()
            proxy.open.append(connection)
            if proxy.struck.is_set():
                if proxy.fault != "stall":
                    connection.close()
                continue
            server = socket.create_connection(("127.0.0.1", proxy.target))
            proxy.open.append(server)
            for source, sink, watched in ((connection, server, True), (server, connection, False)):
                threading.Thread(target=_pass_on, args=(proxy, source, sink, watched), daemon=True).start()


def _pass_on(proxy: Proxy, source: socket.socket, sink: socket.socket, watched: bool) -> None:
    found = False
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            head, end, body = data.partition(b"\r\n\r\n")
            first = head.split(b"\r\n", 1)[0]
            if watched and proxy.fault and first.startswith(b"PUT ") and proxy.needle in first:
                found = True
                sink.sendall(head + end)
                data = body
            if found and data and proxy.fault == "answer":
                proxy.struck.set()
                sink.sendall(data)
                return  # who waits for the answer drops it
            if found and data:
                sink.sendall(data[: len(data) // 2])
                proxy.struck.set()
            if proxy.struck.is_set():
                break
            sink.sendall(data)
        if proxy.fault != "stall":
            source.close()
            sink.close()
