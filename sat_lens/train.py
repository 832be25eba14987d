"""Train a self-ablating transformer on stories; resumable after a stop at any moment.

    python -m sat_lens.train --corpus stories --mask local --out runs/local

Every flag can also stand in a YAML file (`--config F.yaml`, dashes as underscores); flags win. The
run folder gets `log.jsonl`, `last/` and `best/` (lowest held-out loss), both checkpoint folders.
The corpus is packed first, once: the packed tokens stand in --cache.
`--dry-run` says what a run will take and stops. Several processes, on one machine or more, share each batch:

    torchrun --nproc-per-node 2 -m sat_lens.train --device cuda ...
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sat_lens.commands import command_parser, run
from sat_lens.config import SelfAblation
from sat_lens.devices import check_device
from sat_lens.files import locked, recovered
from sat_lens.memory import keep_freed_memory
from sat_lens.presets import PRECISIONS, PRESETS, TrainingSettings
from sat_lens.settings_file import read_yaml

ABLATION_FLAGS = {
    "estimator": (str, "sigmoid or softmax: the soft mask of the backward pass (default: sigmoid)"),
    "forward": (str, "hard (k ones) or soft: the mask of the forward pass (default: hard)"),
    "temperature": (float, "width of the soft mask, in gaps between the k-th score and the next (default: 1)"),
    "gap_floor": (float, "smallest gap that the soft mask divides by, in units of scores (default: 0)"),
    "score_noise": (float, "noise added to scores while training, in standard deviations of them (default: 0)"),
    "unit": (str, "channel (of z) or head: what attention's winners are (default: channel)"),
    "scope": (str, "layer or model: k winners in each layer, or in all (default: layer)"),
    "score_input": (str, "raw or normalized: the residual stream as local gates read it (default: raw)"),
    "detach": (str, "none, scores or trunk: where the mask's gradient is cut (default: none)"),
    "w_clean": (float, "weight of the clean stream's loss (default: 0.5)"),
    "w_ablated": (float, "weight of the ablated stream's loss (default: 0.5)"),
    "w_reconstruction": (float, "weight of the distance between the two residual streams (default: 0)"),
}
SETTING_WORDS = {
    "steps": "optimizer steps (default: {})",
    "batch_size": "sequences a step (default: {})",
    "lr": "learning rate at its peak; falls to 0 along a cosine (default: {})",
    "warmup_steps": "steps of linear warm-up (default: {})",
    "weight_decay": "of AdamW (default: {})",
    "grad_clip": "largest norm of the gradient (default: {})",
    "eval_every": "steps between evaluations; each writes last/, and best/ if it is (default: {})",
    "eval_rows": "held-out sequences of an evaluation (default: {})",
    "log_every": "steps between lines of log.jsonl (default: {})",
    "threads": "torch's threads (default: {})",
}
SETTING_FLAGS = {f.name: f.type for f in dataclasses.fields(TrainingSettings) if f.name != "seed"}
SWITCHES = {
    "resume": "go on from the run folder's last checkpoint, if it has one; give the same flags as before",
    "quiet": "no progress bar",
    "dry_run": "print parameters, memory, FLOPs and expected minutes, and stop",
    "fsdp": "under torchrun: spread weights and optimizer over the processes (large models)",
    "compile": "torch.compile the losses (on an accelerator)",
}


def parser() -> argparse.ArgumentParser:
    p = command_parser("sat_lens.train", __doc__, argument_default=argparse.SUPPRESS)
    add = p.add_argument_group("the run").add_argument
    add("--out", type=Path, help="run folder (needed, here or in --config)")
    add("--config", type=Path, help="YAML file with any of these settings")
    add("--preset", choices=tuple(PRESETS), help="sizes of the model and settings of training (default: cpu)")
    add("--seed", type=int, help="of the first weights and the order of the text (default: 0)")
    add("--init-from", metavar="CKPT",
        help="begin with the weights of this checkpoint; the optimizer and schedule are new")  # fmt: skip
    add("--device", help="cpu, cuda, cuda:N or mps (default: cpu)")
    add("--precision", choices=PRECISIONS, help="bf16: products by autocast (default: fp32)")
    add("--log-to", choices=("wandb", "tensorboard"), help="also log there (installed by you)")
    for name, words in SWITCHES.items():
        add(f"--{name.replace('_', '-')}", action="store_true", help=words)
    add = p.add_argument_group("text").add_argument
    add("--corpus", help="`stories` (the generator), a .txt, .jsonl, .json or .parquet file, a Hugging Face name, "
        "or a mixture A:0.5+B:0.5, shares by characters (default: stories)")  # fmt: skip
    add("--held-out", metavar="CORPUS", help="held-out corpus (default: one story in 64 of --corpus)")
    add("--tokenizer", help="shipped name, file, folder or Hugging Face name (default: stories-4096)")
    add("--max-tokens", type=int, help="tokens of the corpus to pack, at most (default: 20,000,000)")
    add("--cache", type=Path, help="folder for packed corpora (default: runs/packed)")
    add = p.add_argument_group("self-ablation").add_argument
    add("--mask", choices=("none", "local", "global", "both"), help="local: layer l's winners are chosen from the "
        "stream that enters it; global: from the final stream; none: an ordinary model (default: local)")  # fmt: skip
    add("--k-attn", type=int, help="winners among attention's units of a layer (default: 4)")
    add("--k-mlp", type=int, help="winners among the neurons of a layer (default: 4)")
    for name, (kind, words) in ABLATION_FLAGS.items():
        add(f"--{name.replace('_', '-')}", type=kind, help=words)
    add = p.add_argument_group("training").add_argument
    for name, words in SETTING_WORDS.items():
        by_preset = " or ".join(f"{of[name]:g} ({preset})" for preset, of in usual().items())
        values = by_preset if len({of[name] for of in usual().values()}) > 1 else f"{usual()['cpu'][name]:g}"
        add(f"--{name.replace('_', '-')}", type=SETTING_FLAGS[name], help=words.format(values))
    return p


def usual() -> dict[str, dict[str, Any]]:
    """The settings of each preset."""
    own = dataclasses.asdict(TrainingSettings())
    return {name: {**own, **preset["training"]} for name, preset in PRESETS.items()}


DEFAULTS = {
    "corpus": "stories",
    "held_out": None,
    "tokenizer": "stories-4096",
    "max_tokens": 20_000_000,
    "cache": Path("runs/packed"),
    "mask": "local",
    "k_attn": 4,
    "k_mlp": 4,
    "preset": "cpu",
    "seed": 0,
    "init_from": None,
    "device": "cpu",
    "resume": False,
    "log_to": None,
    "quiet": False,
    "dry_run": False,
    "fsdp": False,
}


def options(argv: Sequence[str] | None, source: str | None = None) -> dict[str, Any]:
    """Defaults, then the preset's, then the YAML file's, then the command line's.

    Args:
        argv: the command line; None: the process's own.
        source: what it was read from, to be named where it is wrong; None: it is the command line.

    Raises:
        ValueError: an unknown key in the file, or no --out.
    """
    p = parser()
    p.prog = source or p.prog
    given = vars(p.parse_args(argv))
    if "config" in given:
        p.prog = str(given["config"])  # whose lines are judged from here on
    known = {action.dest for action in p._actions} - {"help", "config"}
    stored = read_yaml(given.pop("config")) if "config" in given else {}
    if unknown := sorted(set(stored) - known):
        raise ValueError(
            f"unknown setting {unknown[0]!r} in the configuration file; known are {', '.join(sorted(known))}"
        )
    stored = vars(p.parse_args(as_flags(stored)))
    chosen = {**DEFAULTS, **stored, **given}
    chosen = {**DEFAULTS, **PRESETS[chosen["preset"]]["training"], **stored, **given}
    if "out" not in chosen:
        raise ValueError("--out is needed: the folder of the run, for example --out runs/local-k4")
    return {**chosen, "out": Path(chosen["out"]), "cache": Path(chosen["cache"])}


def as_flags(stored: dict[str, Any]) -> list[str]:
    """Settings of a file as command-line arguments, so that one parser gives all of them their types."""
    flags = []
    for key, value in stored.items():
        flag = f"--{key.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        elif value is not None and value is not False:
            flags.append(f"{flag}={value}")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    chosen = options(argv)
    ablation, settings = validated(chosen)
    check_device(chosen["device"])
    if chosen["dry_run"]:
        sys.stdout.write(forecast(chosen, ablation, settings))
        return
    keep_freed_memory()
    from sat_lens.distributed import launched

    with launched(chosen["device"]) as device:
        train({**chosen, "device": device}, ablation, settings)


def validated(chosen: dict[str, Any]) -> tuple[SelfAblation, TrainingSettings]:
    """The options as configurations. Raises: ValueError for one that is out of range."""
    names = ("mask", "k_attn", "k_mlp", *ABLATION_FLAGS)
    ablation = SelfAblation(**{name: chosen[name] for name in names if name in chosen})
    sizes = PRESETS[chosen["preset"]]["model"]
    ablation.fit(**{name: sizes[name] for name in ("n_layers", "n_heads", "d_head", "d_mlp")})
    if chosen["out"].is_file():
        raise NotADirectoryError(f"--out must be a folder; {chosen['out']} is a file")
    names = ("seed", *SETTING_FLAGS)
    return ablation, TrainingSettings(**{name: chosen[name] for name in names if name in chosen})


def train(chosen: dict[str, Any], ablation: SelfAblation, settings: TrainingSettings) -> None:
    """The run, in as many processes as there are."""
    from sat_lens.distributed import barrier, is_main

    refuse_another_run(chosen)
    barrier()  # nobody writes before all have looked
    trainer = prepare(chosen, ablation, settings)
    with locked(chosen["out"]) if is_main() else contextlib.nullcontext():
        go_on(trainer, chosen)


def refuse_another_run(chosen: dict[str, Any]) -> bool:
    """Whether the folder holds a run. Raises: ValueError if it should not."""
    is_there = recovered(chosen["out"] / "last").exists()
    if is_there and not chosen["resume"]:
        raise ValueError(f"{chosen['out']} holds a run already; pass --resume to go on, or another --out")
    return is_there


def go_on(trainer: Any, chosen: dict[str, Any]) -> None:
    """Train from the last checkpoint, or from the beginning, to the end."""
    from sat_lens.distributed import barrier, is_main

    out = chosen["out"]
    is_there = refuse_another_run(chosen)  # another process may have finished one since
    barrier()
    if is_there:
        trainer.resume()
    elif chosen["resume"] and is_main():  # stopped before its first checkpoint, or never started
        sys.stderr.write(f"nothing to resume in {out}: starting from the beginning\n")
    trainer.train(progress=not chosen["quiet"])
    if is_main():
        sys.stdout.write(outcome(trainer.log, out))


def outcome(log: str, out: Path) -> str:
    """The last held-out losses and where the weights are, for a person."""
    import json

    last = next((line for line in map(json.loads, reversed(log.splitlines())) if "held_out_total" in line), {})
    streams = [(name, last.get(f"held_out_{name}")) for name in ("clean", "ablated")]
    losses = ", ".join(f"{name} {value:.3f}" for name, value in streams if value is not None)
    said = f"step {last.get('step', 0):,}: held-out loss {losses} (nats a token)\n" if losses else ""
    if "held_out_ioi_accuracy" in last:
        said += f"IOI accuracy, clean stream: {last['held_out_ioi_accuracy']:.2f} (chance 0.5)\n"
    return f"{said}best/ and last/ are checkpoints, log.jsonl is the log, in\n{out}\n"


def forecast(chosen: dict[str, Any], ablation: SelfAblation, settings: TrainingSettings) -> str:
    """What the run will take, without text or model."""
    from sat_lens.cost import dry_run
    from sat_lens.presets import host_config
    from sat_lens.tokenizers import load_tokenizer

    host = host_config(chosen["preset"], len(load_tokenizer(chosen["tokenizer"])), chosen["device"])
    return dry_run(host, ablation, settings).rstrip("\n") + "\n"


def prepare(chosen: dict[str, Any], ablation: SelfAblation, settings: TrainingSettings) -> Any:
    """Text, tokenizer, model and loop of a run."""
    import torch

    from sat_lens.cost import ESTIMATE_ERROR, training_memory
    from sat_lens.distributed import is_main, main_first, world_size
    from sat_lens.memory import require
    from sat_lens.model import SelfAblatingTransformer
    from sat_lens.packing import PackingError, packed
    from sat_lens.presets import host_config
    from sat_lens.run_log import run_log
    from sat_lens.tokenizers import load_tokenizer
    from sat_lens.training import Trainer

    tokenizer = load_tokenizer(chosen["tokenizer"])
    host = host_config(chosen["preset"], len(tokenizer), chosen["device"])
    rows = -(-settings.batch_size // world_size())
    needed = ESTIMATE_ERROR * training_memory(host, ablation, rows).total
    require(needed, f"training with batch {settings.batch_size}", chosen["device"], "lower --batch-size")
    texts = {"tokenizer": tokenizer, "cache": chosen["cache"], "progress": is_main() and not chosen["quiet"]}
    own = chosen["held_out"] is None
    with main_first():
        train = packed(chosen["corpus"], max_tokens=chosen["max_tokens"], part="train" if own else "all", **texts)
        try:
            held_out = packed(
                chosen["held_out"] or chosen["corpus"],
                max_tokens=settings.eval_rows * host.n_ctx,
                part="held_out" if own else "all",
                **texts,
            )
        except PackingError as error:
            hint = "; pass --held-out CORPUS: one story in 64 of --corpus is too little" if own else ""
            raise ValueError(f"no held-out text: {error}{hint}") from None
    train.batch(0, settings.batch_size, host.n_ctx + 1, settings.seed)  # a corpus shorter than a context fails here
    torch.manual_seed(settings.seed)
    model = SelfAblatingTransformer(host, ablation=ablation)
    model.tokenizer = tokenizer
    begun = take_weights(model, chosen["init_from"]) if chosen["init_from"] else {}
    train.check_vocabulary(host.d_vocab)
    evaluation = held_out.evaluation(host.n_ctx + 1)
    return Trainer(
        model,
        settings,
        lambda step: train.batch(step, settings.batch_size, host.n_ctx + 1, settings.seed),
        (evaluation.tokens[: settings.eval_rows], evaluation.mask[: settings.eval_rows, 1:]),
        chosen["out"],
        described={
            "training": {"preset": chosen["preset"], "command": command_line(chosen), **begun},
            "data": {
                "corpus": _names(chosen["corpus"]),
                "n_tokens": train.n_tokens,
                "sha256": train.manifest["files"]["tokens.bin"]["sha256"],
            },
        },
        probes=ioi_probe(tokenizer),
        on_log=run_log(chosen["log_to"], chosen["out"], ablation.to_dict()) if chosen["log_to"] and is_main() else None,
        fsdp=chosen["fsdp"],
    )


def take_weights(model: Any, name: str) -> dict[str, Any]:
    """Put the weights of a checkpoint into the model; its name, its hash and the tokens that it has seen.

    Raises:
        ValueError: weights of other names or shapes than the model's.
    """
    from sat_lens.checkpoint import checkpoint_hash, load, read_config, resolve

    folder = resolve(name)
    weights, ours = load(folder).state_dict(), model.state_dict()
    for key in sorted(weights.keys() ^ ours.keys()):
        raise ValueError(f"--init-from must be a checkpoint of the same model; {key} is only in one of the two")
    for key, value in weights.items():
        if value.shape != ours[key].shape:
            shapes = f"{tuple(value.shape)} there, {tuple(ours[key].shape)} here"
            raise ValueError(f"--init-from must be a checkpoint of the same model; {key} is {shapes}")
    model.load_state_dict(weights)
    seen = read_config(folder)["training"].get("tokens_seen")
    return {"init_from": Path(name).name, "init_sha256": checkpoint_hash(folder), "tokens_seen_before": seen}


def ioi_probe(tokenizer: Any) -> dict[str, Callable[[Any], float]]:
    """Accuracy on IOI prompts with held-out name pairs, where the tokenizer allows the task."""
    from sat_lens.tasks import load_task

    try:
        task = load_task("ioi", tokenizer, n=200, seed=0)
    except ValueError:
        return {}

    def accuracy(model: Any) -> float:
        return (task.logit_difference(model(task.clean.to(model.cfg.device)).cpu()) > 0).float().mean().item()

    return {"ioi_accuracy": accuracy}


def command_line(chosen: dict[str, Any]) -> str:
    """The command that makes this run again, with file names in the place of paths."""
    skip = {"resume", "quiet", "cache", "device", "log_to", "dry_run", "fsdp"}
    flags = [
        f"--{name.replace('_', '-')} {_names(str(value))}"
        for name, value in chosen.items()
        if name not in skip and value is not None
    ]
    return "python -m sat_lens.train " + " ".join(flags)


def _names(corpus: str) -> str:
    """A corpus description without the folders of one machine."""
    return "+".join(part.rsplit("/", 1)[-1] for part in corpus.split("+"))


if __name__ == "__main__":
    run(main)
