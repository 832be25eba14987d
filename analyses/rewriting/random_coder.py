"""The floor of a random coder: as many latents, as many winners, and encoder rows drawn at random.

What is scored well of such latents is scored well of any direction. It reads what the coder reads; of neurons, what
enters their MLP. Its decoder is 0: it is explained and scored, and rewrites nothing.
"""

from typing import Any

import torch

from sat_lens.coders import Coder, CoderConfig, LatentActs, mlp_site
from sat_lens.coders.sites import widths
from sat_lens.coders.substitute import AnyCoder


def random_coder(model: Any, coder: AnyCoder, acts: LatentActs, seed: int = 0) -> Coder:
    """One of the same size.

    Args:
        acts: of the coder, whose mean number of active latents a coder without k is matched to.
    """
    cfg = coder.cfg
    hook_in, hook_out = cfg.hook_in, cfg.hook_out
    if cfg.kind == "neurons":
        hook_in, hook_out = mlp_site(model, int(cfg.hook_in.split(".")[1]), cfg.stream)
    d_in, d_out = widths(model, hook_in, hook_out, cfg.stream)
    active = round(int((acts.value > 0).sum()) / max(1, acts.n_tokens))
    k = cfg.k or min(cfg.n_latents, max(1, active))
    made = Coder(CoderConfig("transcoder", hook_in, hook_out, d_in, d_out, cfg.n_latents, k, cfg.stream))
    rows = torch.randn(cfg.n_latents, d_in, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        made.W_enc.copy_(rows / rows.norm(dim=1, keepdim=True))
    return made.to(model.cfg.device).requires_grad_(False).eval()
