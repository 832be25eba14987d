"""A model whose neurons fire on one token each, and stories of its vocabulary, for the tests of rewriting."""

import torch

from analyses.rewriting.setting import Setting, setting
from analyses.texts import Stories
from sat_lens.coders import Coder, CoderConfig, mlp_site, neuron_coder

N_TOKENS = 12


def one_token_model(n_neurons=N_TOKENS - 2):
    """One layer without attention or norm: neuron i is 1 + i / 8 on token i + 2, else 0, and moves the logits."""
    from sat_lens import SelfAblatingTransformer, SelfAblation
    from sat_lens._tl import HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=1, d_model=N_TOKENS, n_heads=1, d_head=4, d_mlp=n_neurons, n_ctx=32, d_vocab=N_TOKENS, act_fn="relu",
        normalization_type=None, seed=0,
    )  # fmt: skip
    model = SelfAblatingTransformer(cfg, ablation=SelfAblation(mask="none"))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        named = dict(model.named_parameters())
        for parameter in named.values():
            parameter.zero_()
        named["embed.W_E"].copy_(torch.eye(N_TOKENS))
        neurons = torch.arange(n_neurons)
        named["blocks.0.mlp.W_in"][neurons + 2, neurons] = 1 + neurons / 8
        named["blocks.0.mlp.W_out"].copy_(torch.randn(n_neurons, N_TOKENS, generator=draw))
        named["unembed.W_U"].copy_(torch.randn(N_TOKENS, N_TOKENS, generator=draw))
    return model.eval()


def some_stories(n=60, longest=20, n_tokens=N_TOKENS, seed=0):
    """Random tokens."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, n_tokens, (n, longest), generator=draw)
    lengths = torch.randint(6, longest + 1, (n,), generator=draw)
    return Stories(tokens.where(torch.arange(longest) < lengths[:, None], 0), lengths)


def planted_setting() -> Setting:
    """Its neurons as a coder, on random stories."""
    model = one_token_model()
    return setting(model, neuron_coder(model, 0), some_stories())


def random_setting(tiny_model, kind="skip", stream="clean", ablation=None) -> Setting:
    """A tiny model with a random coder of 30 latents, 3 winners, on random stories."""
    model = tiny_model(ablation or {"mask": "none"}, dtype=torch.float32)
    hook_in, hook_out = mlp_site(model, 0, stream)
    coder = Coder(CoderConfig(kind, hook_in, hook_out, 16, 16, 30, 3, stream))
    with torch.no_grad():
        for i, parameter in enumerate(coder.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) / 3)
    return setting(model, coder.requires_grad_(False).eval(), some_stories(40, 14, 29))
