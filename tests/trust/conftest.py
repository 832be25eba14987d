"""What the tests of trust share: how many cases they tried, small folders to damage."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[..., None]:
    """`tried(kind, n=1)`: count cases; `pytest` prints the sums at its end, also of several processes."""

    def count(kind: str, n: int = 1) -> None:
        request.node.user_properties.append(("tried", [kind, n]))

    return count


@pytest.fixture
def small_model() -> Callable[..., Any]:
    """`small_model(**changes of the host)`: one layer, float32, masks, random weights, no tokenizer."""

    def build(seed: int = 0, **changes: Any) -> Any:
        import torch

        from sat_lens import SelfAblatingTransformer, SelfAblation
        from sat_lens._tl import HookedTransformerConfig

        fields = {"n_layers": 1, "d_model": 4, "n_heads": 2, "d_head": 2, "d_mlp": 6, "d_vocab": 29, "n_ctx": 8}
        fixed = {"act_fn": "gelu_new", "tie_word_embeddings": True, "use_attn_scale": False, "device": "cpu"}
        model = SelfAblatingTransformer(
            HookedTransformerConfig(**fields | fixed | changes), ablation=SelfAblation(k_attn=2, k_mlp=3)
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return model.eval()

    return build


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths that were asked for."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Says nothing."""

    running = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", asked
    running.shutdown()
    running.server_close()
