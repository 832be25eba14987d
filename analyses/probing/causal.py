"""What the model loses without what the probe reads: the next token's loss with the label erased at a site.

The eraser is fitted on the training stories of fold 0 and applied, in a forward pass of its judged stories, at the
tokens that have a label. The null is the erasure of random subspaces of the same rank at the same tokens.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.probing.erasure import Eraser
from analyses.texts import Stories
from sat_lens.activations import inference


def story_losses(
    model: Any, stories: Stories, *, stream: str = "clean", batch: int = 32,
    erased: tuple[str, Eraser, Bool[Tensor, "story pos"]] | None = None,
) -> Float[np.ndarray, " story"]:  # fmt: skip
    """Summed loss of each story's next tokens, nats.

    Args:
        model: with or without masks.
        stories: rows of tokens.
        stream: whose loss.
        batch: stories a pass.
        erased: a hook point, the eraser of its vectors (heads flattened) and the tokens at which it acts; None: the
            model as it is.
    """
    losses = []
    knobs = {"padding_side": "right"} if stream == "clean" else {"stream": stream}
    width = int(stories.lengths.max())
    for rows in torch.arange(stories.n).split(batch):
        tokens = stories.tokens[rows, :width].to(model.cfg.device)

        hooks = []
        if erased is not None:
            site, eraser, where = erased
            at = where[rows, :width, None].to(tokens.device)

            def erase(activation: Tensor, hook: Any, eraser: Eraser = eraser, at: Tensor = at) -> Tensor:
                flat = activation.flatten(2)
                return torch.where(at, eraser(flat), flat).view_as(activation)

            hooks = [(site, erase)]
        with inference(model), model.hooks(fwd_hooks=hooks):
            logits = model(tokens, **knobs)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens.roll(-1, 1).flatten(), reduction="none")
        per_story = loss.view_as(tokens).cpu() * stories.predicted[rows, :width]
        losses.append(per_story.sum(1).double())
    return torch.cat(losses).numpy()
