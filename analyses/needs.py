"""What each question needs of a model, in one table, and the one line that says what is missing.

    require(model, "probing")       # nothing, or a ValueError

A question takes one kind of model, or several: a HookedTransformer (a SelfAblatingTransformer is one), whose layers it
runs one by one and whose weights it reads; a TransformerBridge; or any HookedRootModule with TransformerLens' names.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

HOOKED, BRIDGE, ROOT, RUN = "HookedTransformer", "TransformerBridge", "HookedRootModule", "toy run"


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a question needs.

    Args:
        kinds: of model, one of them.
        names: attributes and hook points, `{l}` for every layer.
        besides: what is found out later: of tokenizer, text and task; for people.
        masks: what asks about masks, by flag and value; {"": why} where all of the question does.
        tokenizer: whether it reads text.
    """

    kinds: tuple[str, ...] = (HOOKED,)
    names: tuple[str, ...] = ()
    besides: str = ""
    masks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tokenizer: bool = True


NO_STREAM = "the ablated stream needs a model with masks; this one has none, so take the clean stream"
NO_GATES = "the gated stream needs a model with masks; this one has none: ask for the stream 'clean'"

NEEDS: Mapping[str, Needs] = {
    "leakage": Needs(masks={"": "leakage is asked of a model with masks; this one has none"}),
    "localization": Needs(
        besides="the task's answers as single tokens; a model that does the task, or --force",
        masks={
            "--method overlap": "masks need a model that has gates; this one has none",
            "--method own-masks": "the masks' circuit is asked of a model with masks; this one has none",
            "--stream ablated": NO_STREAM,
        },
    ),
    "probing": Needs(
        kinds=(HOOKED, BRIDGE),
        besides="hook points of --site; labels: roles and holders are known of the generator's stories, others of any",
        masks={"--stream ablated": "stream 'ablated' needs a model with masks; this one has none: take --stream clean"},
    ),
    "rewriting": Needs(
        besides="an MLP, or a residual stream for --kind sae",
        masks={"--stream ablated": "this model has no ablated stream; take stream='clean'"},
    ),
    "sae": Needs(besides="an MLP; sae-lens (pip install sat_lens[sae])"),
    "self_repair": Needs(
        kinds=(HOOKED, BRIDGE, ROOT),
        names=(
            "W_U", "b_U", "ln_final", "blocks.{l}.attn.W_O", "blocks.{l}.hook_resid_pre", "blocks.{l}.attn.hook_z",
            "blocks.{l}.hook_attn_out", "blocks.{l}.hook_mlp_out", "blocks.{l}.hook_resid_post",
        ),
        besides="float32 or float64 weights; no norm behind attention or MLP",
        masks={"--stream gated": NO_GATES, "--stream both": NO_GATES},
    ),  # fmt: skip
    "sparsity": Needs(),
    "specialization": Needs(
        kinds=(HOOKED, BRIDGE),
        besides="labels, as for probing",
        masks={
            "--units mask": "this model has no masks; take neurons, channels or heads of the clean stream",
            "--stream ablated": "this model has no ablated stream; take neurons, channels or heads of the clean stream",
        },
    ),
    "untangling": Needs(kinds=(RUN,), besides="its autoencoder, for latents", tokenizer=False),
    "report": Needs(besides="a model without masks or tokenizer has a page without these parts", tokenizer=False),
    "paper": Needs(besides="what localization, sae and sparsity need"),
}  # fmt: skip


def require(model: Any, question: str, args: Any = None) -> None:
    """Raise where a model lacks what a question needs.

    Args:
        model: as it was loaded or made.
        question: a key of NEEDS; one of your own needs a HookedTransformer.
        args: of its command line, for what needs masks; None: what all of the question needs.

    Raises:
        ValueError: in one line, what is needed and what came.
    """
    needs = NEEDS.get(question, Needs(tokenizer=False))
    kind, came = kind_of(model), type(model).__name__
    if kind not in needs.kinds:
        hint = ""
        if RUN in needs.kinds:
            hint = f"; python -m analyses.{question} train makes one"
        elif kind in (BRIDGE, ROOT):
            hint = "; HookedTransformer.from_pretrained gives one of many models"
        raise ValueError(f"{question} needs {_any(needs.kinds)}; got {_a(came)}{hint}")
    for name in needs.names:
        if missing := _missing(model, name):
            raise ValueError(f"{question} needs {name.replace('{l}', 'L')}; this {came} has no {missing}")
    if needs.tokenizer and getattr(model, "tokenizer", None) is None and args is not None:
        raise ValueError(f"{question} needs the model's tokenizer, to read text; this model has none")
    if getattr(getattr(model, "ablation", None), "mask", "none") == "none":
        for flag, why in needs.masks.items():
            if _given(args, flag):
                raise ValueError(why)


def kind_of(model: Any) -> str:
    """The first of the kinds that a model is, or the name of its class."""
    from sat_lens._tl import HookedTransformer

    if isinstance(model, HookedTransformer):
        return HOOKED
    from transformer_lens import HookedRootModule
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(model, TransformerBridge):
        return BRIDGE
    if isinstance(model, HookedRootModule) and hasattr(model, "cfg"):
        return ROOT
    from sat_lens.toy.runs import ToyRun

    return RUN if isinstance(model, ToyRun) else type(model).__name__


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _given(args: Any, flag: str) -> bool:
    """Whether a command line has this flag with this value; the empty flag is always given."""
    if not flag:
        return True
    name, value = flag.removeprefix("--").split(" ")
    found = getattr(args, name, None)
    return value in found if isinstance(found, list | tuple) else value == found


def _missing(model: Any, name: str) -> str:
    """The first that is not there of an attribute or hook point of the model, in every layer; nothing if all are."""
    for one in _in_layers(model, name):
        if one.rpartition(".")[2].startswith("hook_"):
            if one not in model.hook_dict:
                return one
        elif reduce(_part, one.split("."), model) is None:
            return one
    return ""


def _in_layers(model: Any, name: str) -> Iterator[str]:
    """The name for each layer; nothing of MLPs where there are none, no final norm where the model has none."""
    cfg = getattr(model, "cfg", None)
    if "mlp" in name and getattr(cfg, "attn_only", False):
        return
    if name == "ln_final" and cfg is not None and cfg.normalization_type is None:
        return
    layers = range(cfg.n_layers) if cfg is not None and "{l}" in name else [0]
    yield from (name.replace("{l}", str(layer)) for layer in layers)


def _part(of: Any, name: str) -> Any:
    """An attribute or item, None where there is none."""
    if name.isdigit():
        return of[int(name)] if of is not None and int(name) < len(of) else None
    return getattr(of, name, None)


def sentence(question: str) -> str:
    """What a question (or a step of it, `QUESTION STEP`) needs, as the end of its --help; one of your own: a model."""
    needs = NEEDS.get(question.split()[0], Needs(tokenizer=False))
    return f"Needs {'; '.join([_any(needs.kinds), *_else(needs)])}."


def markdown() -> str:
    """The table of all questions, as CONTRIBUTING.md has it."""
    rows = [f"| `{name}` | {', '.join(needs.kinds)} | {'; '.join(_else(needs))} |" for name, needs in NEEDS.items()]
    return "\n".join(["| question | model | what else |", "| --- | --- | --- |", *rows])


def _any(kinds: Sequence[str]) -> str:
    return " or ".join(map(_a, kinds))


def _else(needs: Needs) -> list[str]:
    """What is needed besides a kind of model, for people."""
    found = ["its tokenizer"] if needs.tokenizer else []
    found += [needs.besides] if needs.besides else []
    found += [f"of a {ROOT}: {', '.join(needs.names)}"] if needs.names else []
    flags = [flag for flag in needs.masks if flag]
    return found + (["masks"] if "" in needs.masks else [f"masks for {', '.join(flags)}"] if flags else [])
