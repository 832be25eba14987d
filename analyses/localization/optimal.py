"""Optimal ablation: cut edges carry constants that were fitted so that circuits lose least.

One vector a source, the same on all prompts and at all positions, which minimises the mean of

    KL(intact model || circuit), nats

over prompts and random circuits: each circuit draws its share of edges uniformly from 0 to 1, and each
edge is in it with that chance. A constant can carry no information about the prompt, and unlike a mean
it does no damage that another constant would not do: what a circuit still loses, it loses for want of
information.

The loss is KL whatever the setting's value: constants that were fitted to a logit difference would
push it above the intact model's, and so solve the task instead of staying out of its way.

Source: arXiv 2409.09951. Differs: constants are fitted once for circuits of all sizes, not again for each.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from analyses.localization.runner import Contrast, end_logits
from analyses.localization.setting import Group, Setting
from analyses.metrics import kl_divergence

BYTES = 2**30
"""What the gradient of the circuits of one pass may take, about."""
N_HELD_OUT, N_LOOKS = 16, 10


def optimal_setting(
    setting: Setting,
    *,
    steps: int = 200,
    lr: float = 0.1,
    seed: int = 0,
    circuits_a_step: int = 8,
    prompts_a_step: int = 16,
    progress: bool = False,
) -> Setting:
    """The same prompts, cut edges carrying `fitted_constants`; arguments and errors are those."""
    constants = fitted_constants(
        setting,
        steps=steps,
        lr=lr,
        seed=seed,
        circuits_a_step=circuits_a_step,
        prompts_a_step=prompts_a_step,
        progress=progress,
    )
    return constant_setting(setting, constants, "optimal")


def constant_setting(setting: Setting, constants: Float[Tensor, "source d_model"], ablation: str) -> Setting:
    """The same prompts, cut edges carrying one vector a source: those of another sample, for instance."""
    return setting.with_other([_with(group.contrast, constants) for group in setting.groups], ablation)


def fitted_constants(
    setting: Setting,
    *,
    steps: int = 200,
    lr: float = 0.1,
    seed: int = 0,
    circuits_a_step: int = 8,
    prompts_a_step: int = 16,
    progress: bool = False,
) -> Float[Tensor, "source d_model"]:
    """The constants that random circuits lose least with.

    They begin at the mean over prompts and positions of what cut edges carry, and Adam moves them in units of
    each source's own spread (its RMS distance from that mean, over clean and other prompts). On
    circuits that are not trained on they are compared as they go, and the best are returned: never worse
    there than the mean.

    The prompts are the setting's own: where few prompts meet many constants, fit on one sample of the task and
    measure on another (`constant_setting`).

    Args:
        setting: with counterfactual prompts as the other run, by custom.
        steps: of Adam; 0 gives the mean.
        lr: falls to a tenth of itself by the last step; spreads a step.
        seed: of circuits and prompts; same seed, same constants.
        circuits_a_step: drawn anew each step.
        prompts_a_step: of one length, drawn anew each step.
        progress: show a bar on stderr, when that is a terminal.

    Raises:
        ValueError: knobs out of range, or a setting made in torch.inference_mode, which has no gradients.

    Cost: circuits_a_step x prompts_a_step forward and backward passes a step, and (N_LOOKS + 1) x N_HELD_OUT
        forward passes over all prompts. Memory in chunks of BYTES, about.
    """
    _check(setting, steps, lr, circuits_a_step, prompts_a_step)
    generator = torch.Generator().manual_seed(seed)
    held_out = random_circuits(setting, N_HELD_OUT, generator)
    weights = torch.tensor([len(group.rows) for group in setting.groups], dtype=torch.float64)
    with torch.inference_mode(False), torch.enable_grad():
        mean, spread = _moments(setting)
        best, least = mean, circuit_loss(setting, mean, held_out)
        offset = torch.zeros_like(mean, requires_grad=True)
        adam = torch.optim.Adam([offset], lr=lr)
        schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.1, max(1, steps))
        for step in tqdm(range(steps), unit="step", disable=None if progress else True):
            group = setting.groups[int(torch.multinomial(weights, 1, generator=generator))]
            rows = torch.randperm(len(group.rows), generator=generator)[:prompts_a_step]
            circuits = random_circuits(setting, circuits_a_step, generator)
            offset.grad = _gradient(setting, mean, spread, offset, group, rows, circuits)
            adam.step()
            schedule.step()
            if (step + 1) * N_LOOKS // steps > step * N_LOOKS // steps:
                now = (mean + spread * offset).detach()
                if (loss := circuit_loss(setting, now, held_out)) < least:
                    best, least = now, loss
    return best


def random_circuits(setting: Setting, n: int, generator: torch.Generator) -> Bool[Tensor, "circuit source destination"]:
    """Circuits of shares drawn uniformly from 0 to 1, each edge by itself."""
    possible = torch.as_tensor(setting.graph.possible)
    share = torch.rand(n, 1, 1, generator=generator)
    return (torch.rand(n, *possible.shape, generator=generator) < share) & possible


def circuit_loss(
    setting: Setting, constants: Float[Tensor, "source d_model"], circuits: Bool[Tensor, "circuit source destination"]
) -> float:
    """Mean over circuits and prompts of KL(intact model || circuit), nats, with cut edges that carry constants."""
    total = 0.0
    with torch.no_grad():
        for group in setting.groups:
            total += _losses(setting, group, _with(group.contrast, constants), circuits).double().mean(0).sum().item()
    return total / setting.n


def _losses(setting: Setting, group: Group, contrast: Contrast, circuits: Tensor) -> Float[Tensor, "circuit n"]:
    logits = end_logits(contrast, circuits.to(group.intact.device), setting.frozen_norm)
    return kl_divergence(group.intact.expand_as(logits), logits)


def _gradient(
    setting: Setting,
    mean: Tensor,
    spread: Tensor,
    offset: Float[Tensor, "source d_model"],
    group: Group,
    rows: Int[Tensor, " row"],
    circuits: Bool[Tensor, "circuit source destination"],
) -> Float[Tensor, "source d_model"]:
    """Of the mean loss of these circuits on these prompts, a few circuits at a time."""
    part = _rows(group, rows)
    found = torch.zeros_like(offset)
    for some in circuits.split(_at_once(part.contrast)):
        contrast = _with(part.contrast, mean + spread * offset)
        loss = _losses(setting, part, contrast, some).mean() * (len(some) / len(circuits))
        found += torch.autograd.grad(loss, offset)[0]
    return found


def _rows(group: Group, rows: Int[Tensor, " row"]) -> Group:
    """A group of some of the prompts."""
    contrast = Contrast(group.contrast.parts, group.contrast.clean[:, rows], group.contrast.other[:, rows])
    per_prompt = (group.rows, group.answers, group.wrong_answers, group.intact, group.other)
    ids, answers, wrong, intact, other = (values[rows.to(values.device)] for values in per_prompt)
    return Group(ids, contrast, answers, wrong, intact, other)


def _with(contrast: Contrast, constants: Float[Tensor, "source d_model"]) -> Contrast:
    return Contrast(contrast.parts, contrast.clean, constants[:, None, None].expand_as(contrast.clean))


def _moments(setting: Setting) -> tuple[Float[Tensor, "source d_model"], Float[Tensor, "source 1"]]:
    """Mean of what cut edges carry, and the RMS distance from it of that and of what sources write."""
    others = [group.contrast.other for group in setting.groups]
    n = sum(other.shape[1] * other.shape[2] for other in others)
    mean = sum(other.double().sum((1, 2)) for other in others) / n
    mean = mean.to(others[0].dtype)
    runs = others + [group.contrast.clean for group in setting.groups]
    squares = sum((x - mean[:, None, None]).double().square().sum((1, 2)).mean(-1, keepdim=True) for x in runs)
    return mean, (squares / (2 * n)).sqrt().to(mean.dtype)


def _at_once(contrast: Contrast) -> int:
    """How many circuits' gradients are held at once."""
    cfg, n, pos = contrast.parts.cfg, contrast.n, contrast.clean.shape[2]
    graph = contrast.parts.graph
    kept = (6 * len(graph.destinations) + 2 * len(graph.sources)) * cfg.d_model
    kept += graph.n_layers * 4 * (cfg.d_mlp or 0)
    one = n * (pos * kept + 6 * cfg.d_vocab) * contrast.clean.element_size()
    return max(1, int(BYTES // one))


def _check(setting: Setting, steps: int, lr: float, circuits_a_step: int, prompts_a_step: int) -> None:
    if steps < 0 or min(circuits_a_step, prompts_a_step) < 1 or not 0 < lr < float("inf"):
        raise ValueError(
            "optimal constants need steps from 0, lr above 0, circuits_a_step and prompts_a_step from 1; "
            f"got {steps}, {lr}, {circuits_a_step} and {prompts_a_step}"
        )
    if any(group.contrast.clean.is_inference() for group in setting.groups):
        raise ValueError("optimal constants need gradients; make the setting outside torch.inference_mode")
