"""What a result was computed from and by: the weights' digest, and the versions that can move a number."""

import hashlib
from importlib.metadata import version
from typing import Any

import torch

from sat_lens import __version__


def origin(model: Any) -> dict[str, str]:
    """`weights_sha256`, `sat_lens`, `torch` and `transformer_lens`."""
    return {
        "weights_sha256": weights_sha256(model),
        "sat_lens": __version__,
        "torch": torch.__version__,
        "transformer_lens": version("transformer-lens"),
    }


def weights_sha256(model: Any) -> str:
    """sha256 over names, types, shapes and bytes of all weights, in the order of their names.

    The same for one model however it was loaded; not the hash of a file. Cost: a second a gigabyte, about.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        weight = weight.detach().cpu().contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.reshape(-1).view(torch.uint8).numpy() if weight.numel() else b"")
    return digest.hexdigest()
