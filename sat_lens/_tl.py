"""The names that TransformerLens 4 removed, in one place.

`HookPoint`, `HookedRootModule` and `ActivationCache` stay in 4.x and are imported where they are
used. What follows does not, hence the pin `transformer-lens < 4`.
"""

import contextlib
import warnings
from collections.abc import Iterator

from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.components.transformer_block import TransformerBlock
from transformer_lens.components.unembed import Unembed
from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig
from transformer_lens.HookedTransformer import HookedTransformer

__all__ = [
    "HookedTransformer",
    "HookedTransformerConfig",
    "TransformerBlock",
    "TransformerLensKeyValueCache",
    "Unembed",
    "hooked_transformer",
    "quiet_construction",
]


@contextlib.contextmanager
def quiet_construction() -> Iterator[None]:
    """Silence the one deprecation message that constructing a HookedTransformer gives."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        yield


def hooked_transformer(cfg: HookedTransformerConfig, tokenizer: object = None) -> HookedTransformer:
    """A plain HookedTransformer, built without the deprecation message and without its print."""
    with quiet_construction():
        model = HookedTransformer(cfg, tokenizer=tokenizer, move_to_device=cfg.n_devices > 1)
    return model.to(cfg.device, print_details=False)
