"""Block replay: running a TransformerBridge from the middle.

A bridge leaves the loop over layers to the model that it wraps, and has no `start_at_layer`. The clean pass
records what every block was called with; a suffix calls the blocks one after another with the same arguments, rows
taken as the copies need them, and without the cache of keys and values, which the clean pass has filled.
"""

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from sat_lens.repair.components import Site
from sat_lens.repair.runner import Clean, Hooks, Point, Runner

Call = tuple[tuple[Any, ...], dict[str, Any]]


class BridgeRunner(Runner):
    """TransformerBridge: starts at any block."""

    def clean(
        self,
        tokens: Int[Tensor, "batch pos"],
        sites: Iterable[Site],
        points: Iterable[Point] = (),
        outputs: bool = False,
    ) -> Clean:
        kept, calls = Clean(), [((), {})] * self.n_layers

        def record(layer: int) -> Any:
            def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                calls[layer] = (args, kwargs)

            return before

        def last(value: Tensor) -> None:
            kept.final = value

        handles = [
            block.register_forward_pre_hook(record(layer), with_kwargs=True)
            for layer, block in enumerate(self.model.blocks)
        ]
        hooks = self.recording(kept, sites, points, outputs)
        try:
            with self.hooked([*hooks, (f"blocks.{self.n_layers - 1}.hook_resid_post", last)]):
                self.model(tokens, return_type=None)
        finally:
            for handle in handles:
                handle.remove()
        kept.streams[Point(self.n_layers)] = kept.final
        kept.replay = (len(tokens), calls)
        return kept

    def suffix(
        self,
        clean: Clean,
        entry: Point,
        x: Float[Tensor, "copy pos d_model"],
        rows: Int[Tensor, " copy"],
        hooks: Hooks,
    ) -> Float[Tensor, "copy pos d_model"]:
        n, calls = clean.replay
        with self.hooked(hooks):
            for layer in range(entry.layer, self.n_layers):
                args, kwargs = _without_stream(calls[layer])
                found = self.model.blocks[layer](x, *_rows(args, rows, n), **_rows(kwargs, rows, n))
                x = found[0] if isinstance(found, tuple) else found
        return x


def _without_stream(call: Call) -> Call:
    """Without the residual stream, the first argument or `hidden_states`."""
    args, kwargs = call
    return args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}


def _rows(value: Any, rows: Tensor, n: int) -> Any:
    """Arguments of n rows as those of these rows; caches are left out."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and value.shape[0] == n else value
    if isinstance(value, tuple | list):
        return type(value)(_rows(one, rows, n) for one in value)
    if isinstance(value, dict):
        return {name: _rows(one, rows, n) for name, one in value.items()}
    return None if "Cache" in type(value).__name__ else value
