"""A chat endpoint as a process of its own, that answers by script: well, late, badly, or not at all.

    python chat_server.py PORT_FILE SCRIPT LOG

SCRIPT is JSON: `{"answers": [{"when": TEXT in the request's body, "times": N or null, "do": KIND, ...}, ...]}`. The
first entry that fits and is not used up answers; none: status 418. Every request is a line of LOG, `{"body", "headers",
"path"}`, written before it is answered. Standard library only, so that it starts in a moment.
"""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def completion(text: Any, logprobs: Any = None, usage: Any = (10, 5), finish: str = "stop") -> dict[str, Any]:
    """The body of a good answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if logprobs is not None:
        choice["logprobs"] = {"content": logprobs}
    counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if usage else None
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": counts}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: list[dict[str, Any]] = []
    log: Path
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode("utf-8")
        with self.lock:
            line = {"body": json.loads(body), "headers": dict(self.headers), "path": self.path}
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            entry = next((e for e in self.script if e.get("when", "") in body and e.get("times", 1) != 0), {})
            if entry.get("times") is not None:
                entry["times"] -= 1
        time.sleep(entry.get("after", 0))
        self.close_connection = True
        getattr(self, f"do_{entry.get('do', 'status')}")(entry)

    def whole(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Connection": "close", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_json(self, entry: dict[str, Any]) -> None:
        self.whole(json.dumps(entry["body"]).encode())

    def do_unannounced(self, entry: dict[str, Any]) -> None:
        """A whole body that ends where the connection does."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(entry["body"]).encode())

    def do_chunks(self, entry: dict[str, Any]) -> None:
        """A whole body in chunks of 7 bytes."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        body = json.dumps(entry["body"]).encode()
        for part in [body[i : i + 7] for i in range(0, len(body), 7)] + [b""]:
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")

    def do_text(self, entry: dict[str, Any]) -> None:
        self.whole(entry["body"].encode("utf-8"))

    def do_status(self, entry: dict[str, Any]) -> None:
        body = json.dumps(entry.get("body", {"error": {"message": "no"}})).encode()
        self.whole(body, entry.get("status", 418), entry.get("headers"))

    def do_drip(self, entry: dict[str, Any]) -> None:
        """One byte at a time, for ever: of the headers, or of the body."""
        if entry.get("part") != "headers":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
        else:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)

    def do_drop(self, entry: dict[str, Any]) -> None:
        """Half of a body: announced whole, or as a chunk, or neither."""
        body = json.dumps(completion("half")).encode()
        how = entry.get("how", "length")
        self.send_response(200)
        if how == "length":
            self.send_header("Content-Length", str(len(body)))
        elif how == "chunk":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write((f"{len(body):x}\r\n".encode() if how == "chunk" else b"") + body[: len(body) // 2])

    def do_huge(self, entry: dict[str, Any]) -> None:
        """A body without an end."""
        self.send_response(200)
        if "announced" in entry:
            self.send_header("Content-Length", str(entry["announced"]))
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b" " * 65536)

    def do_leak(self, entry: dict[str, Any]) -> None:
        """An answer that repeats the key, plain and with each character escaped."""
        key = self.headers["Authorization"].removeprefix("Bearer ")
        if entry.get("status", 200) != 200:
            self.whole(json.dumps({"error": f"bad key {key}"}).encode(), entry["status"])
            return
        escaped = "".join(f"\\u{ord(c):04x}" for c in key)
        self.whole(json.dumps(completion("KEY")).replace("KEY", f"{key} {escaped}").encode())

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr."""


class Running:
    """A server under test."""

    def __init__(self, port: int, log: Path) -> None:
        self.url, self.port, self.log = f"http://127.0.0.1:{port}/v1", port, log

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Everything it was asked, in order."""
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    @property
    def asked(self) -> list[str]:
        """The last message of each request."""
        return [request["body"]["messages"][-1]["content"] for request in self.requests]


@contextlib.contextmanager
def serving(folder: Path, *answers: dict[str, Any]) -> Iterator[Running]:
    """Start the process, and end it."""
    number = len(list(folder.glob("script-*")))
    script, port, log = (folder / f"{name}-{number}" for name in ("script", "port", "log"))
    script.write_text(json.dumps({"answers": answers}), encoding="utf-8")
    log.touch()
    process = subprocess.Popen([sys.executable, "-S", __file__, str(port), str(script), str(log)])
    try:
        end = time.monotonic() + 20
        while not (port.exists() and port.read_text()):
            assert process.poll() is None and time.monotonic() < end, "the server did not start"
            time.sleep(0.01)
        yield Running(int(port.read_text()), log)
    finally:
        process.kill()
        process.wait()


def main(port_file: str, script: str, log: str) -> None:
    Handler.script = json.loads(Path(script).read_text(encoding="utf-8"))["answers"]
    Handler.log = Path(log)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Path(port_file).write_text(str(server.server_address[1]))
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
