"""One HTTP POST that ends: within its time, within its size, at the host it was meant for.

The time-out of a socket begins anew with every byte, so that an answer of one byte a second never ends. Here every
read has what is left of the total time; what was received is counted, headers too; a redirect leads to the same
scheme, host and port, or nowhere. Proxies are not used.
"""

import contextlib
import dataclasses
import functools
import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from urllib.parse import SplitResult, urljoin, urlsplit

from analyses.explain.chat import ChatError

POLL_S = 0.25
"""Time after which a waiting read looks whether it shall be broken off."""
REDIRECTS = 3


class Broken(Exception):
    """The answer did not come, or not whole; another attempt may get it."""


class TooLarge(Exception):
    """The answer is larger than allowed."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may take.

    Args:
        connect_s: to connect, and for the handshake of TLS.
        read_s: without a single byte: a model that does not stream is silent until it has finished.
        total_s: in all.
        n_bytes: of the answer, with its headers.
        retries: further attempts, where one may help.
        backoff_s: before the first of them, doubled for each; between half of that and all of it, at random.
        longest_wait_s: whatever the server asks for.
    """

    connect_s: float | int = 10.0
    read_s: float | int = 120.0
    total_s: float | int = 300.0
    n_bytes: int = 2**23
    retries: int = 5
    backoff_s: float | int = 0.5
    longest_wait_s: float | int = 60.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "retries" else 1e-3
            if not least <= value < 1e9:
                raise ValueError(f"{field.name} must be a number above 0; got {value}")


@dataclasses.dataclass(frozen=True)
class Answer:
    """Status, headers (names in lower case) and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def checked_url(url: str) -> str:
    """An http or https address without user, password, query or fragment, without a slash at its end.

    Raises:
        ValueError: anything else; what may be a password is not repeated.
    """
    wrong = "a base URL must be http://HOST[:PORT]/PATH or https://..."
    if not isinstance(url, str) or not url.isascii() or any(c <= " " or c in '"<>\\^`{|}\x7f' for c in url):
        raise ValueError(f"{wrong}, in ASCII without spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"{wrong}; its host or port is none") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(f"{wrong}, without user, password, query or fragment: keys come from the environment alone")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"{wrong}; got {url!r}")
    return url.rstrip("/")


def post(url: str, body: bytes, headers: Mapping[str, str], limits: Limits, broken_off: threading.Event) -> Answer:
    """Send it, and read the answer whole, whatever its status.

    Raises:
        Broken: no connection, no answer in time, or one that ends too soon.
        TooLarge: more than `limits.n_bytes`.
        ChatError: a redirect elsewhere, or a certificate that is not the host's.
    """
    deadline = time.monotonic() + limits.total_s
    for _ in range(REDIRECTS + 1):
        answer = _once(urlsplit(url), body, headers, limits, deadline, broken_off)
        if answer.status not in (301, 302, 303, 307, 308):
            return answer
        url = _redirected(url, answer)
    raise ChatError(f"{urlsplit(url).netloc} redirects more than {REDIRECTS} times")


def _redirected(url: str, answer: Answer) -> str:
    here = urlsplit(url)
    try:
        there = urlsplit(urljoin(url, answer.headers.get("location", "")))
        same = _origin(here) == _origin(there) and there.username is None
    except ValueError:
        there, same = None, False
    if answer.status == 303 or not same or there is None or there.geturl() == url:
        where = there.netloc.rpartition("@")[2][:100] if there is not None else "nowhere"
        raise ChatError(
            f"{here.netloc} redirects to {there.scheme if there else ''}://{where}, which is refused: "
            "the request and its key go to the base URL alone; give the address it leads to, if it is the right one"
        )
    return there.geturl()


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _once(
    parts: SplitResult,
    body: bytes,
    headers: Mapping[str, str],
    limits: Limits,
    deadline: float,
    broken_off: threading.Event,
) -> Answer:
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    own = {"context": _trust()} if secure else {}
    connect_s = max(1e-3, min(limits.connect_s, deadline - time.monotonic()))
    with _readable(limits), contextlib.closing(kind(str(parts.hostname), parts.port, timeout=connect_s, **own)) as line:
        line.response_class = lambda sock, *args, **knobs: http.client.HTTPResponse(
            _Reading(sock, deadline, limits, broken_off), *args, **knobs
        )
        line.connect()
        line.sock.settimeout(max(1e-3, min(limits.read_s, deadline - time.monotonic())))
        line.request("POST", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), body, dict(headers))
        with contextlib.closing(line.getresponse()) as response:
            pieces = []
            while piece := response.read(2**16):
                pieces.append(piece)
        if response.length:  # http.client says nothing of a body that is shorter than announced
            raise Broken(f"the connection broke with {response.length:,} bytes to come")
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, b"".join(pieces))


@functools.cache
def _trust() -> ssl.SSLContext:
    """The certificates of the system."""
    return ssl.create_default_context()


@contextlib.contextmanager
def _readable(limits: Limits) -> Iterator[None]:
    """What goes wrong on the way, in a few words."""
    try:
        yield
    except (Broken, TooLarge, ChatError):
        raise
    except ssl.SSLCertVerificationError as error:
        raise ChatError(f"the certificate of the server is refused: {error.verify_message}") from None
    except TimeoutError:
        raise Broken(f"nothing came in time (connect {limits.connect_s:g} s, read {limits.read_s:g} s)") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        words = getattr(error, "strerror", None) or type(error).__name__
        raise Broken(f"the connection failed: {words}") from None


class _Reading(io.RawIOBase):
    """A socket as a file for `http.client`, which calls `makefile` and reads."""

    def __init__(self, sock: socket.socket, deadline: float, limits: Limits, broken_off: threading.Event) -> None:
        self.sock, self.deadline, self.limits, self.broken_off = sock, deadline, limits, broken_off
        self.keeps_open = sock.makefile("rb", buffering=0)  # http.client closes the socket before the body is read
        self.left = limits.n_bytes

    def makefile(self, mode: str) -> io.BufferedReader:
        """What `http.client` reads from."""
        return io.BufferedReader(self, 2**14)

    def readable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Close the socket, too."""
        self.keeps_open.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:
        """Some bytes, 0 at the end."""
        silent_until = time.monotonic() + self.limits.read_s
        while True:
            now = time.monotonic()
            if self.broken_off.is_set():
                raise Broken("it was broken off")
            if now >= self.deadline:
                raise Broken(f"the answer was not whole after {self.limits.total_s:g} s")
            if now >= silent_until:
                raise TimeoutError
            self.sock.settimeout(max(1e-3, min(POLL_S, self.deadline - now, silent_until - now)))
            try:
                n = self.sock.recv_into(buffer)
            except TimeoutError:
                continue
            self.left -= n
            if self.left < 0:
                raise TooLarge(f"the answer is larger than {self.limits.n_bytes:,} bytes")
            return n
