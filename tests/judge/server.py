"""A chat server on loopback that misbehaves as told: `script(prompt, n)` says what its n-th call does."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Say:
    """Answer with this text."""

    text: str | None = "It is there.\nRating: [[2]]"
    finish: str = "stop"
    tokens: tuple[int, int] | None = (300, 20)


@dataclass
class Fail:
    """Answer with this status, headers and body."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"error": {"message": "no", "code": null}}'


@dataclass
class Raw:
    """Answer 200 with this body."""

    body: str
    content_type: str = "application/json"


class Drop:
    """Close the connection without an answer."""


class Hang:
    """Say nothing until the server stops."""


Script = Callable[[str, int], object]


class Server(ThreadingHTTPServer):
    """`prompts`: what was asked, in order; `most`: the largest number of calls at one time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.prompts: list[str] = []
        self.bodies: list[dict] = []
        self.keys: set[str] = set()
        self.now = self.most = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.prompts)

    def handle_error(self, *_: object) -> None:
        """A client that left is no error of a test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][0]["content"]
        server = self.server
        with server.lock:
            server.prompts.append(prompt)
            server.bodies.append(body)
            server.keys.add(self.headers.get("authorization", ""))
            server.now += 1
            server.most = max(server.most, server.now)
            n = server.prompts.count(prompt)
        try:
            act = server.script(prompt, n)
        finally:
            with server.lock:
                server.now -= 1
        self._do(act, body)

    def _do(self, act: object, body: dict) -> None:
        if isinstance(act, Hang):
            self.server.stopping.wait(30)
            act = Drop()
        if isinstance(act, Drop):
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif isinstance(act, Fail):
            self._send(act.status, act.body, act.headers)
        elif isinstance(act, Raw):
            self._send(200, act.body, {"content-type": act.content_type})
        elif isinstance(act, Say):
            reply = {
                "id": "x", "object": "chat.completion", "created": 0, "model": body["model"] + "-2024",
                "choices": [{"index": 0, "finish_reason": act.finish,
                             "message": {"role": "assistant", "content": act.text}}],
            }  # fmt: skip
            if act.tokens:
                sent, got = act.tokens
                reply["usage"] = {"prompt_tokens": sent, "completion_tokens": got, "total_tokens": sent + got}
            self._send(200, json.dumps(reply), {})

    def _send(self, status: int, body: str, headers: dict[str, str]) -> None:
        data = body.encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serve(script: Script) -> Iterator[Server]:
    """A running server; stopped and closed at the end."""
    server = Server(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()
