"""The latents of a coder as Neuron2Graph asks them: what is a latent's activation after these tokens?"""

from collections.abc import Iterator
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from analyses.explain.subject import ModelSubject
from sat_lens.coders import site_batches
from sat_lens.coders.substitute import AnyCoder


class LatentSubject(ModelSubject):
    """Some latents, in the order given.

    Args:
        latents: which.
    """

    def __init__(self, model: Any, coder: AnyCoder, latents: Int[Tensor, " latent"], batch: int = 256) -> None:
        super().__init__(model, batch)
        self.coder, self.latents = coder, latents

    def last(self, tokens: Int[Tensor, "row pos"]) -> Iterator[tuple[Tensor, Float[Tensor, "_ unit"]]]:
        """See `ModelSubject`."""
        for batch in site_batches(self.model, self.coder.cfg, tokens, batch_size=self.batch):
            found = self.coder.dense(self.coder.encode(batch.x[:, -1]))
            yield batch.rows, found[:, self.latents.to(found.device)]
