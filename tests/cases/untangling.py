"""Toy models in which it is written down what each dimension is for, and small ones with real weights."""

import torch
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from sat_lens.toy.arithmetic import task_data
from sat_lens.toy.config import ToyConfig
from sat_lens.toy.runs import fresh

OPERANDS = 5


class Table(HookedRootModule):
    """Gives each (example, position) the state that a table holds."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows
        self.hook_state = HookPoint()
        self.setup()

    def forward(self, index):
        return self.hook_state(self.rows[index])


class Planted:
    """A toy model whose states are written down: one row of a table an example; logits are linear in them."""

    site = "hook_state"

    def __init__(self, data, rows, unembedding):
        self.data, self.net, self._unembedding = data, Table(rows), unembedding

    def run(self, source, answer, names=()):
        problems = self.data.problems
        index = torch.tensor([int((problems.source == row).all(1).nonzero()[0]) for row in source])
        state = self.net(index)
        return self.readout(state), dict.fromkeys(names, state)

    def readout(self, state):
        return state @ self._unembedding

    @property
    def unembedding(self):
        return self._unembedding

    def answering(self, x):
        return x


def addition_and_concatenation():
    """All pairs of operands, three tenths of them to train on."""
    return task_data(OPERANDS, train_share=0.3, val_share=0.35, seed=2)


def planted_tasks(data):
    """Dimension v + V k says "token v, task k"; one more, both tasks' share of E, is written by both alike."""
    size = len(data.tokenizer)
    problems, end = data.problems, data.tokenizer.ids["E"]
    rows = torch.zeros(*problems.answer.shape, 2 * size + 1, dtype=torch.float64).scatter_(
        2, (problems.answer + size * problems.task[:, None])[..., None], 1.0
    )
    is_end = problems.answer == end
    rows[is_end] = 0.0
    rows[..., -1][is_end] = 1.0
    one = torch.zeros(1, size, dtype=torch.float64)
    one[0, end] = 1.0
    unembedding = 20 * torch.cat([torch.eye(size, dtype=torch.float64)] * 2 + [one])
    return Planted(data, rows, unembedding)


def small_runs():
    """Small runs with real weights: nothing is known about them but how they compute."""
    found = {}
    for arch in ("decoder", "seq2seq"):
        config = ToyConfig(arch=arch, operands=OPERANDS, d_model=16, n_heads=2, d_mlp=24, n_latents=20, n_layers=1,
                           train_share=0.6, val_share=0.2)  # fmt: skip
        found[arch] = fresh(config)
        with torch.no_grad():
            for p in found[arch].toy.net.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.2)
    return found
