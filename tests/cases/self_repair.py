"""A model whose MLP makes up for a head by a known share, stories for it, and a whole result of the question."""

import torch

from analyses.self_repair.repair import story_self_repair
from analyses.texts import Stories

U = 3.0


def texts(n=6, pos=9):
    tokens = torch.randint(29, (n, pos), generator=torch.Generator().manual_seed(5))
    return Stories(tokens, torch.tensor([pos, pos - 2, pos, pos - 1, pos, 4][:n]))


def backup_model(tiny_model, share):
    """Head 1.0 adds U to axis 0, and the MLP behind it adds `share` of what is missing of U there."""
    model = tiny_model(ablation={"mask": "none"}, normalization_type=None, act_fn="relu", tie_word_embeddings=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        attn, mlp = model.blocks[1].attn, model.blocks[1].mlp
        attn.b_V[0, 0] = 1.0
        attn.W_O[0, 0, 0] = U
        mlp.W_in[0, 0], mlp.b_in[0] = -1.0, U
        mlp.W_out[0, 0] = share
        model.unembed.W_U[0] = torch.arange(29)
    return model


def story_result():
    """A Result with everything, made by hand-sized runs."""
    from sat_lens import SelfAblatingTransformer, SelfAblation
    from sat_lens._tl import HookedTransformerConfig

    torch.manual_seed(0)
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_heads=4, d_head=4, d_mlp=24, d_vocab=29, n_ctx=16, act_fn="gelu_new",
        normalization_type="LN", dtype=torch.float64, device="cpu",
    )  # fmt: skip
    model = SelfAblatingTransformer(cfg, ablation=SelfAblation(k_attn=3, k_mlp=5)).eval()
    return story_self_repair(model, texts(), stream="both", select="all", control=False)
