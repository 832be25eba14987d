"""The steps of a run, each from what the ones before it left in the run's folder."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from analyses import needs
from analyses.cli import load_model
from analyses.explain import Explanation, load_explanations, save_explanations
from analyses.explain.chat import ChatBackend
from analyses.explain.llm_simulator import LlmSimulator
from analyses.provenance import checkpoint_sha256
from analyses.result import Result
from analyses.rewriting import arguments as given
from analyses.rewriting.explaining import explained_by_model, explained_by_rules, sampled_latents, within_bits
from analyses.rewriting.faults import FAULTS
from analyses.rewriting.loss import rewriting_loss
from analyses.rewriting.random_coder import random_coder
from analyses.rewriting.rewriter import Rewriter, dealt_to_others, rule_rewriter
from analyses.rewriting.run_folder import RunFolder, is_run, opened, started
from analyses.rewriting.scoring import OWN, RANDOM, SHUFFLED, scored, scores_result
from analyses.rewriting.setting import Setting, disjoint, high, setting
from analyses.rewriting.standard import standard_plans
from analyses.texts import Stories, stories
from analyses.unit_streams import real_tokens
from sat_lens.coders import (
    CoderConfig,
    CoderTraining,
    LatentActs,
    collect,
    evaluate_coder,
    load_coder,
    mlp_site,
    neuron_coder,
    save_coder,
    train_coder,
)
from sat_lens.coders.sites import check_site, widths
from sat_lens.coders.substitute import AnyCoder

SCALE = 0.9
"""Quantile over active tokens that a language model's greatest answer stands for."""
CODER_STORIES = 5000
"""At most, that a coder is trained on; they are gone through again."""


def coder_step(target: str, path: Path, args: argparse.Namespace) -> RunFolder:
    """A coder, and its latents on the stories.

    Args:
        target: a checkpoint, or a run's folder.
        path: of the run, where it is a checkpoint.
    """
    if is_run(target):
        return opened(target)
    model = load_model(target, args.device)
    needs.require(model, "rewriting", args)
    n_tokens = args.tokens or (given.QUICK_TOKENS if args.quick else given.TOKENS)
    trains = args.kind != "neurons" and not args.coder
    texts = {
        "corpus": args.corpus, "n": args.n or (given.QUICK_STORIES if args.quick else given.STORIES),
        "n_coder": min(CODER_STORIES, max(64, n_tokens // 100)) if trains else 0, "seed": args.seed or 0,
    }  # fmt: skip
    wanted = _wanted(model, args) | ({"n_tokens": n_tokens} if trains else {})
    run = started(path, target, checkpoint_sha256(model, target)[1], texts, wanted)
    _finish_coder(run, model, args)
    return run


def _wanted(model: Any, args: argparse.Namespace) -> dict[str, Any]:
    """What the run's coder is, as JSON."""
    layer = model.cfg.n_layers // 2 if args.layer is None else args.layer
    if args.kind == "neurons":
        return {"kind": "neurons", "layer": layer, "stream": args.stream, "k": args.k}
    if args.coder:
        return {"folder": str(Path(args.coder).resolve()), "site": args.site}
    if args.site:
        hook_in, hook_out = args.site[0], args.site[-1]
    elif args.kind == "sae":
        mlp_site(model, layer, args.stream)
        hook_in = hook_out = f"blocks.{layer}." + ("ablated." if args.stream == "ablated" else "") + "hook_resid_post"
    else:
        hook_in, hook_out = mlp_site(model, layer, args.stream)
    d_in, d_out = widths(model, hook_in, hook_out, args.stream)
    latents = args.latents or (given.QUICK_LATENTS if args.quick else given.LATENTS)
    cfg = CoderConfig(args.kind, hook_in, hook_out, d_in, d_out, latents, args.k or min(given.K, latents), args.stream)
    return dataclasses.asdict(cfg)


def _finish_coder(run: RunFolder, model: Any, args: argparse.Namespace) -> None:
    if run.done("coder", {"done": True}, run.latents):
        return
    texts, others = texts_of(run, model)
    wanted = dict(run.about["coder"])
    progress = not args.quiet
    if (n_tokens := wanted.pop("n_tokens", None)) is not None:
        train_coder(
            model, others.tokens, CoderConfig(**wanted), CoderTraining(n_tokens=n_tokens, batch_tokens=128),
            lengths=others.lengths, keep=real_tokens(model, others), out=run.coder, resume=run.coder.exists(),
            described={"checkpoint": run.about["checkpoint"]}, progress=progress,
        )  # fmt: skip
    elif "folder" in wanted:
        site = wanted["site"] or [None]
        foreign = load_coder(wanted["folder"], hook_in=site[0], hook_out=site[-1], device=str(model.cfg.device))
        check_site(model, foreign.cfg)
        save_coder(foreign, run.coder, training={"from": wanted["folder"]})
    coder = coder_of(run, model)
    acts = collect(model, coder, texts.tokens, texts.lengths, keep=real_tokens(model, texts))
    acts.save(run.latents)
    made = setting(model, coder, texts, acts=acts, seed=run.about["texts"]["seed"])
    rows = made.splits.evaluate
    found = evaluate_coder(model, coder, texts.tokens[rows], lengths=texts.lengths[rows], keep=made.keep[rows])
    run.about["steps"]["coder quality"] = {
        "fvu": found.fvu, "l0": found.l0, "dead_share": found.dead_share, "density": found.density,
        "ce": found.ce, "kl": found.kl, "ce_score": found.ce_score, "n_stories": len(rows),
    }  # fmt: skip
    run.record("coder", {"done": True})


def texts_of(run: RunFolder, model: Any) -> tuple[Stories, Stories]:
    """The stories of the four splits, and those that the coder is trained on, none of them or a copy of one."""
    texts = run.about["texts"]
    n, more = texts["n"], texts["n_coder"]
    found = stories(texts["corpus"], model, n + more, texts["seed"])
    if more and found.n < 2 * n:
        n = found.n // 2
    first, rest = torch.arange(found.n).split([min(n, found.n), max(found.n - n, 0)])
    main = found.subset(first)
    return main, disjoint(main, found.subset(rest))


def coder_of(run: RunFolder, model: Any) -> AnyCoder:
    """The run's coder."""
    wanted = run.about["coder"]
    if wanted.get("kind") == "neurons":
        return neuron_coder(model, wanted["layer"], wanted["stream"], wanted["k"])
    return load_coder(run.coder, device=str(model.cfg.device))


def setting_of(run: RunFolder, args: argparse.Namespace) -> Setting:
    """What later steps work on.

    Raises:
        ValueError: a checkpoint that is another one than the run's, or a coder's step that has not ended.
    """
    model = load_model(run.about["checkpoint"], args.device)
    if checkpoint_sha256(model, run.about["checkpoint"])[1] != run.about["sha256"]:
        raise ValueError(f"{run.about['checkpoint']} has other weights now than those that {run.path} is of")
    _finish_coder(run, model, args)
    texts, _ = texts_of(run, model)
    acts = LatentActs.load(run.latents)
    return setting(model, coder_of(run, model), texts, acts=acts, seed=run.about["texts"]["seed"])


def names_of(args: argparse.Namespace) -> list[str]:
    """The sets of explanations that a step works on."""
    return (args.rules or ["ngram"]) if args.explainer == "rules" else [args.explainer]


def explain_step(run: RunFolder, made: Setting, args: argparse.Namespace) -> None:
    """Explanations, and shorter ones."""
    if args.explainer != "rules":
        return _explain_by_model(run, made, args)
    for rule in names_of(args):
        after, path = run.digest("coder"), run.explanations(rule)
        settings = {"rule": rule, "after": after}
        if not run.done(f"explain {rule}", settings, path):
            save_explanations(explained_by_rules(made, rule, progress=not args.quiet), path)
            run.record(f"explain {rule}", settings)
        whole = load_explanations(path)
        for bits in given.BITS if args.max_bits is None else args.max_bits:
            name = f"{rule}.b{bits}"
            if not run.done(f"explain {name}", settings, run.explanations(name)):
                save_explanations(within_bits(made, rule, whole, bits, progress=not args.quiet), run.explanations(name))
                run.record(f"explain {name}", settings)


def _explain_by_model(run: RunFolder, made: Setting, args: argparse.Namespace) -> None:
    backend = backend_of(run, args)
    settings = {"identity": backend.identity, "sample": args.sample, "after": run.digest("coder")}
    if run.done(f"explain {args.explainer}", settings, run.explanations(args.explainer)):
        return
    explanations, missing = explained_by_model(
        made, backend, sampled_latents(made, args.sample), progress=not args.quiet
    )
    if not explanations:
        raise ValueError(
            f"{backend.name} explained none of {len(missing)} latents; the first: {min(missing.items())[1]}"
        )
    save_explanations(explanations, run.explanations(args.explainer))
    run.about["steps"][f"missing {args.explainer}"] = {str(k): v for k, v in missing.items()}
    run.record(f"explain {args.explainer}", settings)


def backend_of(run: RunFolder, args: argparse.Namespace) -> ChatBackend:
    """The language model; nothing is asked of it twice."""
    from analyses.explain.chat_budget import Budget
    from analyses.explain.chat_cache import CachedChat
    from analyses.explain.chat_hf import HfChat
    from analyses.explain.chat_http import HttpChat
    from analyses.explain.chat_replay import Recording, ReplayChat
    from analyses.explain.chat_wire import Limits

    if args.explainer == "replay":
        return ReplayChat(args.cassette)
    if args.explainer == "hf":
        inner = HfChat(args.weights, args.device)
    else:
        budget, limits = Budget(args.max_calls, args.max_tokens), Limits(total_s=args.timeout or Limits.total_s)
        inner = HttpChat(
            args.url, args.model, key_variable=args.key_variable, n_threads=args.threads or 4, budget=budget,
            limits=limits,
        )  # fmt: skip
    cached = CachedChat(inner, run.path / "replies")
    return Recording(cached, args.cassette) if args.cassette else cached


def rewriter_of(
    run: RunFolder, made: Setting, name: str, explanations: list[Explanation], args: argparse.Namespace
) -> Rewriter:
    """The explanations with what simulates them: themselves, or a language model."""
    if all(e.rule is not None for e in explanations):
        return rule_rewriter(name, explanations, made.vocabulary)
    if args.explainer == "rules":
        raise ValueError(f"the explanations {name} are text, which a language model simulates; give its --explainer")
    latents = torch.tensor([e.unit for e in explanations])
    scale = high(made.of("explain"), SCALE)[latents]
    simulator = LlmSimulator(
        backend_of(run, args), explanations, made.vocabulary, scale, mode=args.mode, progress=not args.quiet
    )
    return Rewriter(name, explanations, simulator)


def explanations_of(run: RunFolder, name: str) -> list[Explanation]:
    """Those that are there.

    Raises:
        ValueError: none of this name, or of latents that are not the coder's.
    """
    if not run.explanations(name).is_file():
        there = ", ".join(run.names()) or "none"
        raise ValueError(
            f"{run.path} has no explanations {name!r} (there are: {there}); python -m analyses.rewriting explain"
        )
    return load_explanations(run.explanations(name))


def few_stories(made: Setting, args: argparse.Namespace) -> Setting:
    """Where a language model simulates, the first stories of each split alone."""
    if args.explainer == "rules":
        return made
    splits = made.splits._replace(
        **{name: getattr(made.splits, name)[: args.scored] for name in ("score", "calibrate", "evaluate")}
    )
    return dataclasses.replace(made, splits=splits)


def asked_of(args: argparse.Namespace) -> dict[str, Any]:
    """What, of a language model's simulations, a step's result depends on."""
    return {} if args.explainer == "rules" else {"scored": args.scored, "mode": args.mode}


def score_step(run: RunFolder, made: Setting, args: argparse.Namespace) -> None:
    """Scores of each set of explanations, and its floors."""
    made = few_stories(made, args)
    for name in names_of(args):
        explanations = explanations_of(run, name)
        settings = {"after": run.digest("coder", f"explain {name}"), "floors": not args.no_floors, **asked_of(args)}
        folder = run.path / "scores" / name
        if run.done(f"score {name}", settings, folder / "table.csv", folder / "meta.json"):
            continue
        rewriters = {OWN: rewriter_of(run, made, name, explanations, args)}
        settings_of = {OWN: made}
        if not args.no_floors and len(explanations) > 1:
            dealt = dealt_to_others(explanations, made.seed)
            rewriters[SHUFFLED], settings_of[SHUFFLED] = rewriter_of(run, made, name, dealt, args), made
        if not args.no_floors and args.explainer == "rules":
            other = setting(made.model, random_coder(made.model, made.coder, made.acts, made.seed), made.stories,
                            seed=made.seed)  # fmt: skip
            explained = explained_by_rules(other, name, progress=not args.quiet)
            rewriters[RANDOM], settings_of[RANDOM] = rule_rewriter(name, explained, made.vocabulary), other
        sets = {source: scored(settings_of[source], rewriter) for source, rewriter in rewriters.items()}
        missing = run.about["steps"].get(f"missing {name}", {})
        scores_result(made, name, rewriters, sets, missing).save(folder)
        run.record(f"score {name}", settings)


def loss_step(run: RunFolder, made: Setting, args: argparse.Namespace) -> None:
    """What rewriting costs."""
    made = few_stories(made, args)
    names = names_of(args)
    short = [name for name in run.names() if name.rpartition(".b")[0] in names]
    every = sorted([*names, *short])
    rank_by = args.rank_by or ("detection" if args.preset == "paper" else "r")
    knobs = {
        "positions": args.positions or ("last" if args.preset == "paper" else "all"),
        "missing": args.missing, "draws": args.draws or (5 if args.preset == "paper" else given.DRAWS),
    }  # fmt: skip
    plans = [plan for name in names for plan in standard_plans(name, short, args, made.coder.cfg)]
    settings = {
        "after": run.digest("coder", *(f"{step} {name}" for step in ("explain", "score") for name in every)),
        "plans": [dataclasses.asdict(plan) for plan in plans], "rank_by": rank_by, **knobs, **asked_of(args),
    }  # fmt: skip
    folder = run.path / "loss"
    if run.done("loss", settings, folder / "table.csv", folder / "meta.json"):
        return
    rewriters = {name: rewriter_of(run, made, name, explanations_of(run, name), args) for name in every}
    scores = {name: ranking(run, name, rewriters[name], rank_by) for name in names}
    found = rewriting_loss(made, rewriters, plans, scores, **knobs, progress=not args.quiet)
    found.meta["knobs"] |= {"rank_by": rank_by, "preset": args.preset or "", "explanations": names}
    if args.preset == "paper":
        found.meta["summary"] += f"\nthe published order of things, whose {len(FAULTS)} faults the page `method` names"
    found.save(folder)
    run.record("loss", settings)


def ranking(run: RunFolder, name: str, rewriter: Rewriter, rank_by: str) -> torch.Tensor:
    """The score of each explained latent by which it is rewritten, NaN where it has none."""
    folder = run.path / "scores" / name
    if not (folder / "meta.json").is_file():
        raise ValueError(f"{run.path} has no scores of {name}; python -m analyses.rewriting score comes before loss")
    table = Result.load(folder).table
    own = table[table.source == OWN].set_index("latent")[rank_by]
    return torch.tensor(own.reindex([e.unit for e in rewriter.explanations]).to_numpy(), dtype=torch.float64)
