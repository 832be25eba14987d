import numpy as np
import pytest
import torch

from analyses.localization import concentration_figure, effects_figure, head_figure, unit_effects, unit_figures
from analyses.localization.concentration import concentration
from analyses.localization.replay import HOOKS, baseline, end_logits
from analyses.localization.units import batches, unit_columns
from analyses.metrics import gini
from analyses.result import Result
from sat_lens import SelfAblatingTransformer, SelfAblation
from sat_lens._tl import HookedTransformerConfig, hooked_transformer
from sat_lens.ablate import mean_activations
from sat_lens.tasks import Task

VOCABULARY = 11
SMALL = {
    "n_layers": 3, "d_model": 8, "n_heads": 4, "d_head": 2, "d_mlp": 5, "n_ctx": 12, "d_vocab": VOCABULARY, "seed": 1,
    "act_fn": "gelu_new", "normalization_type": "LN", "dtype": torch.float64, "initializer_range": 0.7,
}  # fmt: skip
ARCHITECTURES = {
    "gpt2": {},
    "llama": {
        "normalization_type": "RMS", "final_rms": True, "gated_mlp": True, "act_fn": "silu", "n_key_value_heads": 2,
        "positional_embedding_type": "rotary", "rotary_dim": 2, "rotary_adjacent_pairs": True,
    },
    "neox": {"parallel_attn_mlp": True, "positional_embedding_type": "rotary", "rotary_dim": 2},
    "attention only": {"attn_only": True, "normalization_type": None},
    "alibi": {"positional_embedding_type": "alibi"},
    "local attention": {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local", "local"]},
    "norms behind": {"use_normalization_before_and_after": True, "normalization_type": "RMS", "act_fn": "relu"},
    "split inputs": {"use_split_qkv_input": True},
    "one layer": {"n_layers": 1},
}  # fmt: skip


def small_model(**changes):
    model = hooked_transformer(HookedTransformerConfig(**SMALL | changes)).eval()
    biased(model)
    return model


def biased(model):
    """Random biases, which TransformerLens initialises with zeros, so that a forgotten one shows."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if ".b_" in name or name.endswith(".b"):
            torch.nn.init.normal_(parameter, std=0.5)


def random_task(n=6, lengths=(4, 7, 4, 6, 7, 1), seed=0):
    draw = torch.Generator().manual_seed(seed)
    clean, corrupt = (torch.randint(0, VOCABULARY, (n, max(lengths)), generator=draw) for _ in range(2))
    answers = torch.randint(0, VOCABULARY, (n,), generator=draw)
    return Task("random", clean, corrupt, answers, (answers + 1) % VOCABULARY, {"end": torch.tensor(lengths) - 1})


def naive_effects(model, task, *, ablation, positions="all", stream="clean"):
    """Every unit alone, by a hook on the whole model: {(kind, layer, unit): [logit difference, loss]}."""
    kwargs = {} if stream == "clean" else {"stream": stream}
    hooks = HOOKS if stream == "clean" else {"attn": "attn.hook_gated_z", "mlp": "mlp.hook_gated_post"}
    at = torch.arange(task.clean.shape[1]) < task.lengths[:, None]  # [n pos]
    if positions == "end":
        at &= torch.arange(task.clean.shape[1]) == task.positions["end"][:, None]
    clean, corrupt = (model.run_with_cache(tokens, **kwargs)[1] for tokens in (task.clean, task.corrupt))

    def measured(logits):
        end = logits[torch.arange(task.n), task.positions["end"]]
        losses = torch.nn.functional.cross_entropy(end, task.answers)
        return torch.stack([task.logit_difference(logits).mean(), -losses])

    before, effects = measured(model(task.clean, **kwargs)), {}
    for kind in ("head", "channel") if model.cfg.attn_only else ("head", "channel", "neuron"):
        for layer in range(model.cfg.n_layers):
            name = f"blocks.{layer}.{hooks['mlp' if kind == 'neuron' else 'attn']}"
            mean = clean[name][at].mean(0).expand_as(clean[name])
            new = {"zero": 0 * mean, "mean": mean, "resample": corrupt[name]}[ablation].flatten(2)
            for unit, columns in enumerate(unit_columns(model.cfg, kind)):
                replaced = at[..., None] & torch.zeros(new.shape[-1], dtype=torch.bool).index_fill(0, columns, True)

                def hook(z, hook, new=new, replaced=replaced):
                    return torch.where(replaced, new, z.flatten(2)).reshape(z.shape)

                after = measured(model.run_with_hooks(task.clean, fwd_hooks=[(name, hook)], **kwargs))
                effects[kind, layer, unit] = (before - after).tolist()
    return effects


def table_effects(result):
    d_head = SMALL["d_head"]
    return {
        (row.kind, row.layer, {"head": row.head, "channel": row.channel if row.kind != "channel" else
                               row.head * d_head + row.channel, "neuron": row.neuron}[row.kind]):
        [row.effect_logit_diff, row.effect_loss] for row in result.table.itertuples()
    }  # fmt: skip


def assert_same_effects(result, naive):
    found = table_effects(result)
    assert found.keys() == naive.keys()
    for unit, effect in naive.items():
        assert found[unit] == pytest.approx(effect, abs=1e-9), unit
    assert max(abs(x) for effect in naive.values() for x in effect) > 0.01


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batched_effects_are_those_of_one_unit_at_a_time(architecture):
    model, task = small_model(**ARCHITECTURES[architecture]), random_task()
    with torch.no_grad():
        naive = naive_effects(model, task, ablation="resample")
    assert_same_effects(unit_effects(model, task, ablation="resample", n_bootstrap=2), naive)


@pytest.mark.parametrize("positions", ["all", "end"])
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_every_ablation_at_every_position_is_that_of_hooks(ablation, positions):
    model, task = small_model(), random_task()
    with torch.no_grad():
        naive = naive_effects(model, task, ablation=ablation, positions=positions)
    assert_same_effects(unit_effects(model, task, ablation=ablation, positions=positions, n_bootstrap=2), naive)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize(
    ("mask", "changes"),
    [
        ("local", {}),
        ("global", {"unit": "head", "k_attn": 2}),
        ("both", {"forward": "soft"}),
        ("local", {"scope": "model", "k_attn": 9, "k_mlp": 6}),
    ],
)
def test_effects_in_the_ablated_stream_are_those_of_hooks_on_its_gated_units(mask, changes, ablation):
    settings = SelfAblation(**{"mask": mask, "k_attn": 5, "k_mlp": 3} | changes)
    model = SelfAblatingTransformer(HookedTransformerConfig(**SMALL), ablation=settings).eval()
    biased(model)
    task = random_task()
    with torch.no_grad():
        naive = naive_effects(model, task, ablation=ablation, stream="ablated")
    assert_same_effects(unit_effects(model, task, ablation=ablation, stream="ablated", n_bootstrap=2), naive)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_effects_in_float32_are_those_in_float64(architecture):
    changes = ARCHITECTURES[architecture]
    exact = table_effects(unit_effects(small_model(**changes), random_task(), n_bootstrap=2))
    single = small_model(**changes, dtype=torch.float32)
    single.load_state_dict(small_model(**changes).state_dict())
    for unit, effect in table_effects(unit_effects(single, random_task(), n_bootstrap=2)).items():
        assert effect == pytest.approx(exact[unit], abs=1e-4)


def test_the_ablated_baseline_is_the_models_own_ablated_stream():
    model = SelfAblatingTransformer(HookedTransformerConfig(**SMALL), ablation=SelfAblation(k_attn=2, k_mlp=2)).eval()
    tokens = torch.randint(0, VOCABULARY, (3, 5))
    with torch.no_grad():
        base = baseline(model, tokens, stream="ablated")
        assert torch.allclose(end_logits(model, base.resid_post[-1][:, -1]), model(tokens, stream="ablated")[:, -1])


def test_neither_chunks_nor_batches_nor_the_order_of_prompts_move_a_number():
    model, task = small_model(), random_task()
    whole = table_effects(unit_effects(model, task, n_bootstrap=2))
    pieces = unit_effects(model, task, n_bootstrap=2, batch=1, memory_mb=0)
    order = unit_effects(model, task.subset([3, 1, 5, 0, 4, 2]), n_bootstrap=2)
    for other in (pieces, order):
        for unit, effect in table_effects(other).items():
            assert effect == pytest.approx(whole[unit], abs=1e-12)


def test_the_seed_moves_intervals_and_nothing_else():
    model, task = small_model(), random_task()
    first, again, other = (unit_effects(model, task, n_bootstrap=50, seed=seed).table for seed in (0, 0, 1))
    assert first.equals(again)
    assert first.effect_logit_diff.equals(other.effect_logit_diff)
    assert not first.ci_low.equals(other.ci_low)


def test_the_model_is_given_back_as_it_was():
    model = SelfAblatingTransformer(HookedTransformerConfig(**SMALL), ablation=SelfAblation(k_attn=2, k_mlp=2)).eval()
    tokens = torch.randint(0, VOCABULARY, (2, 5))
    before, act_fns = model(tokens), [block.mlp.act_fn for block in model.blocks]
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    unit_effects(model, random_task(), stream="ablated", n_bootstrap=2)
    assert torch.equal(model(tokens), before)
    assert [block.mlp.act_fn for block in model.blocks] == act_fns
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_means_can_be_taken_over_other_text():
    model, task = small_model(), random_task()
    tokens, lengths = torch.randint(0, VOCABULARY, (4, 8)), torch.tensor([8, 3, 5, 2])
    keep = torch.arange(8) < lengths[:, None]
    means = mean_activations(model, tokens, ["blocks.2.mlp.hook_post"], keep=keep)["blocks.2.mlp.hook_post"]
    result = unit_effects(model, task, units=["neuron"], reference=(tokens, lengths), n_bootstrap=2)

    def hook(post, hook):
        post = post.clone()
        post[..., 3] = means[3]
        return post

    change = task.logit_difference(model(task.clean)) - task.logit_difference(
        model.run_with_hooks(task.clean, fwd_hooks=[("blocks.2.mlp.hook_post", hook)])
    )
    row = result.table[(result.table.layer == 2) & (result.table.neuron == 3)].iloc[0]
    assert row.effect_logit_diff == pytest.approx(change.mean().item())
    assert result.meta["knobs"]["mean_over"] == "reference"


def test_batches_hold_rows_of_one_length_and_each_row_once():
    lengths = torch.tensor([3, 5, 3, 3, 5])
    rows = [part.tolist() for part in batches(lengths, 2)]
    assert rows == [[0, 2], [3], [1, 4]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": "ablated"}, "needs a model with masks"),
        ({"ablation": "optimal"}, "zero, mean, resample; got 'optimal'"),
        ({"positions": "last"}, "all, end; got 'last'"),
        ({"units": ["heads"]}, "head, channel and neuron; got 'heads'"),
        ({"units": []}, "nothing to ablate"),
    ],
)
def test_what_a_model_does_not_have_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        unit_effects(small_model(), random_task(), **changes)


def test_prompts_beyond_the_context_or_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="context of 5 tokens; the longest has 7"):
        unit_effects(small_model(n_ctx=5), random_task())
    with pytest.raises(ValueError, match="below the model's 8"):
        unit_effects(small_model(d_vocab=8), random_task())


def test_an_attention_only_model_has_no_neurons():
    result = unit_effects(small_model(attn_only=True), random_task(), n_bootstrap=2)
    assert set(result.table.kind) == {"head", "channel"}
    with pytest.raises(ValueError, match="no neuron"):
        unit_effects(small_model(attn_only=True), random_task(), units=["neuron"])


# ---- planted answers --------------------------------------------------------------------------------

NAMES, ASK, FILLER, YES, NO = range(4), 4, 5, 6, 7


def planted_model():
    """Hand-set weights: head 1.2 copies the name that it sees to the end, neuron 0.3 says YES to FILLER.

    The residual stream is [one-hot token | output logits]. Everything else is small noise.
    """
    d_vocab = 8
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=2 * d_vocab, n_heads=3, d_head=4, d_mlp=6, n_ctx=8, d_vocab=d_vocab, act_fn="relu", seed=0,
        normalization_type=None, initializer_range=0.01,
    )  # fmt: skip
    model = hooked_transformer(cfg).eval()
    token, output = torch.eye(2 * d_vocab)[:d_vocab], torch.eye(2 * d_vocab)[d_vocab:]
    with torch.no_grad():
        model.pos_embed.W_pos.zero_()
        model.embed.W_E.copy_(token)
        model.unembed.W_U.copy_(output.T)
        copies = model.blocks[1].attn
        for weight in (copies.W_Q, copies.W_K, copies.W_V, copies.W_O):
            weight[2].zero_()
        copies.W_Q[2, ASK, 0] = 40.0  # the question looks for a name ...
        copies.W_K[2, list(NAMES), 0] = 1.0
        copies.W_V[2, list(NAMES), list(NAMES)] = 1.0  # ... and moves which one it is ...
        copies.W_O[2] = 5 * output[list(NAMES)]  # ... to its logit
        mlp = model.blocks[0].mlp
        mlp.W_in[:, 3] = 2 * token[FILLER]
        mlp.W_out[3] = 3 * (output[YES] - output[NO])  # 2 * 3 = 6 logits each way
        model.unembed.b_U[NO] = 4.0
    return model


def copying_task():
    prompts = [[FILLER, name, FILLER, ASK] for name in NAMES] * 2
    other = [[FILLER, (name + 1) % 4, FILLER, ASK] for name in NAMES] * 2
    names = torch.tensor([*NAMES, *NAMES])
    return Task(
        "copy", torch.tensor(prompts), torch.tensor(other), names, (names + 2) % 4, {"end": torch.full((8,), 3)}
    )


def yes_task():
    clean, corrupt = torch.tensor([[0, FILLER]] * 4), torch.tensor([[0, ASK]] * 4)
    yes, no = torch.full((4,), YES), torch.full((4,), NO)
    return Task("yes", clean, corrupt, yes, no, {"end": torch.ones(4, dtype=torch.long)})


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_the_planted_head_is_named_first_with_its_channels(ablation):
    result = unit_effects(planted_model(), copying_task(), ablation=ablation, n_bootstrap=200)
    heads = result.table[result.table.kind == "head"]
    first = heads.iloc[0]
    assert (first.layer, first["head"]) == (1, 2)
    # the name's logit rises by 5 while the head stands; a donor's or the mean's name is not the wrong one or is all
    assert first.effect_logit_diff == pytest.approx(5.0, abs=0.1)
    assert first.ci_low > 1 and first.effect_loss > 0.5
    assert heads.effect_logit_diff.abs().iloc[1] < 0.1
    channels = result.table[result.table.kind == "channel"].head(4)
    assert set(zip(channels.layer, channels["head"], strict=True)) == {(1, 2)}
    assert result.meta["task"]["accuracy"] == 1 and result.meta["task"]["solved"]


@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_the_planted_neuron_is_named_first(ablation):
    result = unit_effects(planted_model(), yes_task(), ablation=ablation, n_bootstrap=200)
    first = result.table[result.table.kind == "neuron"].iloc[0]
    assert (first.layer, first.neuron) == (0, 3)
    assert first.effect_logit_diff == pytest.approx(12.0, abs=0.1)  # 6 logits for YES and 6 against NO
    assert first.p_holm < 1 and result.table[result.table.kind == "neuron"].effect_logit_diff.abs().iloc[1] < 0.1
    shares = {row["metric"]: row["value"] for row in result.meta["concentration"] if row["kind"] == "neuron"}
    assert shares["gini"] > 0.8 and shares["top_1_percent"] > 0.9  # one of twelve neurons


def test_a_mean_takes_nothing_from_a_unit_that_is_the_same_on_every_prompt():
    result = unit_effects(planted_model(), yes_task(), ablation="mean", positions="end", n_bootstrap=2)
    assert result.table.effect_logit_diff.abs().max() < 1e-5


def test_a_model_at_chance_is_said_not_to_solve_the_task():
    task = random_task(n=60, lengths=(4,) * 60)
    summary = unit_effects(small_model(), task, units=["head"], n_bootstrap=2).meta["task"]
    assert summary["accuracy_low"] <= 0.5 and not summary["solved"]


def test_concentration_is_that_of_the_mean_effects_with_an_interval():
    effects = np.random.default_rng(0).normal([[5.0], [1.0], [0.5], [0.0]], 0.3, size=(4, 50))
    rows = {row["metric"]: row for row in concentration("head", effects, n_bootstrap=300)}
    assert rows["gini"]["value"] == pytest.approx(gini(effects.mean(1)))
    assert rows["gini"]["ci_low"] < rows["gini"]["value"] < rows["gini"]["ci_high"]
    assert rows["top_10_percent"]["value"] == pytest.approx(5 / 6.5, abs=0.05) and rows["gini"]["n"] == 50


def test_figures_are_drawn_from_disk_alone(tmp_path):
    result = unit_effects(planted_model(), copying_task(), n_bootstrap=20)
    result.save(tmp_path)
    loaded = Result.load(tmp_path)
    heat = head_figure(loaded).data[0]
    assert np.asarray(heat.z).shape == (2, 3) and np.nanargmax(np.asarray(heat.z)) == 1 * 3 + 2
    assert [trace.name for trace in effects_figure(loaded, "neuron").data] == ["layer 0", "layer 1"]
    curves = [trace.name.split(" (")[0] for trace in concentration_figure(loaded).data]
    assert curves == ["all equal", "heads", "channels", "neurons"]
    names = {"heads", "heads_sorted", "channels_sorted", "neurons_sorted", "concentration"}
    assert set(unit_figures(loaded)) == names
    assert "copy, mean, clean" in head_figure(loaded).layout.title.text


# ---- the command ------------------------------------------------------------------------------------
