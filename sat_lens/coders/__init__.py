"""Coders: what goes in and out of a part of the model, written as a few latents that can be read one by one.

| file | idea |
| --- | --- |
| `latents` | the few that are active: indices and values |
| `coder` | skip transcoder, transcoder and top-k SAE |
| `neurons` | the MLP's own neurons, as such a coder |
| `sites` | hook points, and their activations token by token |
| `folder`, `foreign` | coders on disk: ours, those of sae-lens and of sparsify |
| `objective`, `train` | what is learned, and the loop |
| `sae_lens_trainer` | the same by sae-lens, for SAEs |
| `latent_acts` | the latents of a set of stories, sparse, by token and by latent |
| `suffix`, `substitute` | running the model with another output at the site |
| `evaluate` | what a coder loses |
"""

from importlib import import_module
from typing import Any

_HOMES = {
    **dict.fromkeys(("Latents", "top_latents"), "latents"),
    **dict.fromkeys(("KINDS", "Coder", "CoderConfig"), "coder"),
    **dict.fromkeys(("NeuronCoder", "neuron_coder"), "neurons"),
    **dict.fromkeys(("SiteBatch", "mlp_site", "site_batches"), "sites"),
    **dict.fromkeys(("load_coder", "save_coder"), "folder"),
    **dict.fromkeys(("CoderTraining", "train_coder"), "train"),
    "train_with_sae_lens": "sae_lens_trainer",
    **dict.fromkeys(("LatentActs", "collect"), "latent_acts"),
    **dict.fromkeys(("Substitution", "Substituted", "substituted"), "substitute"),
    **dict.fromkeys(("Evaluation", "evaluate_coder"), "evaluate"),
}
__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sat_lens.coders' has no attribute {name!r}")
    return getattr(import_module(f"sat_lens.coders.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
