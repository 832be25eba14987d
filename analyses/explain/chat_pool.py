"""Many requests to one backend: in threads and batches, few at a time, replies in the order of the requests.

An interrupt (or an error) sends nothing more and waits for what is under way, so that it is answered, kept, and not
asked again in the next run; a second interrupt breaks that off, too.
"""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from tqdm import tqdm

from analyses.explain.chat import ChatBackend, ChatReply, ChatRequest, NoReply

AHEAD = 4
"""Batches a thread that are handed out before their replies are wanted."""


def replies(
    backend: ChatBackend,
    requests: Iterable[ChatRequest],
    n: int | None = None,
    progress: bool = False,
    what: str = "requests",
) -> Generator[ChatReply | NoReply, None, None]:
    """The reply to each request, in order; NoReply in the place of one that has none.

    Args:
        requests: read as they are needed: there may be more than memory holds.
        n: how many there are, for the progress bar.
        what: its caption.

    Raises:
        ChatError: no further request will have a reply (BudgetError: or may be sent).
    """
    waiting = iter(requests)
    pool = ThreadPoolExecutor(backend.n_threads, thread_name_prefix="chat")
    out: deque[Future[list[ChatReply | NoReply]]] = deque()
    backend.halt(0)
    finished = False
    try:
        with tqdm(total=n, desc=what, disable=None if progress else True) as bar:
            while True:
                while len(out) < AHEAD * backend.n_threads and (part := list(islice(waiting, backend.batch))):
                    out.append(pool.submit(backend.answers, part))
                if not out:
                    finished = True
                    return
                for reply in out.popleft().result():
                    bar.update()
                    yield reply
    finally:
        if not finished:
            backend.halt(1)
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        except BaseException:
            backend.halt(2)
            raise
