"""Every question, put to four kinds of model of the same weights: the same numbers, or a refusal of one line.

The kinds: a SelfAblatingTransformer, a plain HookedTransformer, a TransformerBridge of a random GPT-2, and a
HookedRootModule that has TransformerLens' names and nothing else.
"""

import contextlib
import io
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from analyses import needs
from analyses.localization.__main__ import CIRCUIT_METHODS
from analyses.result import Result
from analyses.self_repair.mechanisms import STUDIES
from sat_lens import SelfAblatingTransformer, SelfAblation
from sat_lens._tl import HookedTransformerConfig, hooked_transformer
from sat_lens.tokenizers import load_tokenizer
from tests.trust.test_every_question import MASKED, QUESTIONS, hooks_on

CIRCUITS = {f"circuit, {name}": f"localization --method {name} --n 2 --no-checks --force" for name in CIRCUIT_METHODS}
MORE = {
    **CIRCUITS,
    "units of the ablated stream": "localization --n 2 --stream ablated",
    "channels and heads": "specialization --n 8 --draws 2 --units channel head",
    "masks as units": "specialization --n 8 --draws 2 --units mask",
    "pages": "specialization --quick --n 8 --draws 2 --page",
    "gated stream": "self_repair --tokens 200 --stream gated",
    **{f"study, {name}": f"self_repair --tokens 200 --study {name}" for name in STUDIES},
    "sae": "sae --n 4 --steps 2 --coefficients 1 --expansion 2",
    "rewriting, transcoder": "rewriting --quick --n 12 --latents 8 --k 2 --tokens 2000 --no-pages",
    "rewriting, residual": "rewriting --kind sae --quick --n 12 --latents 8 --k 2 --tokens 2000 --no-pages",
    "rewriting, neurons": "rewriting --kind neurons --quick --n 12 --k 4 --no-pages",
    "rewriting, ablated": "rewriting --quick --n 12 --latents 8 --k 2 --tokens 2000 --no-pages --stream ablated",
}
ASKED = {**QUESTIONS, **MORE}
WITH_MASKS = {
    *MASKED, "circuit, own-masks", "units of the ablated stream", "masks as units", "gated stream",
    "rewriting, ablated",
}  # fmt: skip
AT_SCALES = {"study, layer_shift", "study, self_repression"}
"""What holds norms' scales, whose hook points the minimal module does not have."""
SHORT = {
    "localization, units", "localization, acdc", "specialization", "self-repair", "sparsity", "circuit, patching",
    "circuit, own-masks", "units of the ablated stream", "channels and heads", "masks as units", "gated stream",
    "study, layer_shift", "study, hydra", "study, mediation", "study, dose", "rewriting, neurons",
}  # fmt: skip
"""What is asked without the slow tests: each kind of question, about 25 s in all."""
ASKED_IN_ORDER = [pytest.param(name, marks=() if name in SHORT else pytest.mark.slow) for name in ASKED]
MASKS = SelfAblation(mask="local", k_attn=3, k_mlp=2)
SIZE = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "d_vocab": 4096, "n_ctx": 64}
BY_CHANCE = re.compile(r"(?:^|_)p(?:_|$)|^q$|null|untrained|low|high|frac")
"""Columns that are draws, or turn on the last bits of them."""


class Layer(nn.Module):
    """A block of GPT-2 with TransformerLens' hook points, each in the data path."""

    def __init__(self, block):
        super().__init__()
        self.attn, self.mlp, self.weights = nn.Module(), nn.Module(), [block]
        for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"):
            setattr(self, f"hook_{name}", HookPoint())
        self.attn.hook_z, self.mlp.hook_post = HookPoint(), HookPoint()
        self.attn.W_O, self.mlp.W_out = block.attn.W_O, block.mlp.W_out

    def forward(self, x):
        block = self.weights[0]
        x = self.hook_resid_pre(x)
        attn, inside = block.attn, block.ln1(x)
        q, k, v = (
            torch.einsum("bpd,hdc->bhpc", inside, getattr(attn, f"W_{one}")) + getattr(attn, f"b_{one}")[:, None]
            for one in "QKV"
        )
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.hook_attn_out(torch.einsum("bphc,hcd->bpd", self.attn.hook_z(z), attn.W_O) + attn.b_O)
        inside = block.ln2(self.hook_resid_mid(x)) @ block.mlp.W_in + block.mlp.b_in
        post = self.mlp.hook_post(nn.functional.gelu(inside, approximate="tanh"))
        return self.hook_resid_post(x + self.hook_mlp_out(post @ block.mlp.W_out + block.mlp.b_out))


class Minimal(HookedRootModule):
    """What `analyses.needs` says of a HookedRootModule, and no more."""

    def __init__(self, plain, tokenizer):
        super().__init__()
        self.cfg, self.tokenizer, self.weights = plain.cfg, tokenizer, [plain]
        self.blocks, self.ln_final = nn.ModuleList(map(Layer, plain.blocks)), plain.ln_final
        self.W_U, self.b_U = plain.W_U, plain.b_U
        self.setup()

    def forward(self, tokens):
        (plain,) = self.weights
        x = plain.embed.W_E[tokens] + plain.pos_embed.W_pos[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.ln_final(x) @ self.W_U + self.b_U


@pytest.fixture(scope="module")
def models():
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 4096, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = GPT2LMHeadModel(GPT2Config(**sizes, attn_implementation="eager", initializer_range=0.3)).eval()
        for parameter in hf.parameters():
            if parameter.ndim == 1:  # norms and biases, which begin at 1 and 0
                parameter.data += 0.3 * torch.randn_like(parameter)
    cfg = HookedTransformerConfig(**SIZE, act_fn="gelu_new", normalization_type="LN", eps=1e-5, device="cpu", seed=0)
    tokenizer, weights = load_tokenizer("stories-4096"), convert_gpt2_weights(hf, cfg)
    plain, masked = hooked_transformer(cfg), SelfAblatingTransformer(cfg, ablation=MASKS)
    for model in (plain, masked):
        model.load_state_dict({name: value.clone() for name, value in weights.items()}, strict=False)
        model.tokenizer = tokenizer
    bridge = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, dtype=torch.float32, device="cpu")
    bridge.tokenizer = tokenizer
    bridge(torch.zeros(1, 2, dtype=torch.long))  # whose first pass adds hooks of its own, which stay
    return {
        "plain": plain.eval(), "masked": masked.eval(), "bridge": bridge.eval(), "minimal": Minimal(plain, tokenizer),
    }  # fmt: skip


def answer(asked, model, out, monkeypatch):
    """The Result of a question, as its command computes it."""
    name, *flags = ASKED[asked].split()
    module = import_module(f"analyses.{name}.__main__")
    argv = ["model", *flags, "--quiet", "--out", str(out)]
    if name == "rewriting":
        monkeypatch.setattr("analyses.rewriting.steps.load_model", lambda checkpoint, device: model)
        with contextlib.redirect_stdout(io.StringIO()):
            module.main(argv)
        return Result.load(next((out / "rewriting").glob("model*")))
    args = module.arguments(argv)
    args.name = "model"
    return module.analyse(model, args)


def assert_same_numbers(found, expected):
    """Rows of `expected` are among those found, with the same numbers but for what is drawn.

    R2 of hydra's last MLP is left out: nothing answers it, so that it is one of rounding errors.
    """
    if "measure" in expected and "r2" in set(expected.measure):
        expected = expected[expected.measure != "r2"]
        found = found[found.measure != "r2"]
    numbers = [c for c in expected.select_dtypes("number") if not BY_CHANCE.search(c)]
    assert numbers and len(found) >= len(expected)
    if len(found) > len(expected):  # of masks there are more
        words = [c for c in expected if c not in numbers and expected[c].map(type).eq(str).all()]
        keys = [*words, *(c for c in ("layer", "k") if c in expected)]
        found = expected[keys].merge(found.drop_duplicates(keys), on=keys, how="left")
    for column in numbers:
        np.testing.assert_allclose(found[column], expected[column], rtol=2e-3, atol=2e-4, err_msg=column)


def kinds_that_answer(asked):
    if asked in WITH_MASKS:
        return {"masked"}
    known = {
        needs.HOOKED: ("plain", "masked"),
        needs.BRIDGE: ("bridge",),
        needs.ROOT: () if asked in AT_SCALES else ("minimal",),
    }
    return {kind for of in needs.NEEDS[ASKED[asked].split()[0]].kinds for kind in known[of]}


@pytest.mark.parametrize("asked", ASKED_IN_ORDER)
def test_every_kind_of_model_is_answered_alike_or_refused_in_one_line(asked, models, tmp_path, monkeypatch, tried):
    answering, expected = kinds_that_answer(asked), None
    for kind, model in models.items():
        before = hooks_on(model)
        if kind in answering:
            found = answer(asked, model, tmp_path / kind, monkeypatch).table
            assert len(found)
            if expected is not None:
                assert_same_numbers(found, expected)
            expected = found if kind == "plain" else expected
        else:
            with pytest.raises(ValueError) as refused:
                answer(asked, model, tmp_path / kind, monkeypatch)
            line = str(refused.value)
            assert "\n" not in line and any(word in line for word in ("need", "mask", "no ablated stream", "only")), (
                line
            )
            assert type(model).__name__ in line or asked in WITH_MASKS | AT_SCALES
        assert hooks_on(model) == before
        tried("questions put to a kind of model")


def test_a_toy_s_question_refuses_every_other_model(models):
    from sat_lens.toy.runs import load_toy

    for model in models.values():
        with pytest.raises(ValueError, match=rf"^untangling needs a toy run; got an? {type(model).__name__}; .* train"):
            needs.require(model, "untangling")  # types are checked in tests, so that `untangling` itself stops sooner
    needs.require(load_toy("decoder-n50-none-s0"), "untangling")


def test_the_report_shows_what_it_can_of_every_kind(models, tmp_path, monkeypatch):
    from analyses import report
    from analyses.report_page import report_html

    args = report.arguments([*models, "--n", "4", "--quiet", "--out", str(tmp_path)])
    monkeypatch.setattr(report, "load_model", lambda checkpoint, device: models[checkpoint])
    of = dict(zip(models, report.entries(args, list(models), ["test"]), strict=True))
    assert isinstance(of["plain"].localization, Result) and isinstance(of["masked"].localization, Result)
    assert of["bridge"].localization.startswith("localization needs a HookedTransformer; got a TransformerBridge")
    assert of["minimal"].localization.startswith("localization needs a HookedTransformer; got a Minimal")
    assert not isinstance(of["masked"].story, str)
    assert {of[kind].story for kind in ("plain", "bridge", "minimal")} == {"this checkpoint has no gates"}
    assert of["bridge"].localization.split(";")[0] in report_html(list(of.values()))


def test_what_a_module_lacks_is_named(models):
    def lacking(name, of=None):
        found = Minimal(models["plain"], None)
        delattr(found if of is None else found.get_submodule(of), name)
        found.setup()
        return found

    for model, missing in (
        (lacking("W_U"), "W_U"),
        (lacking("W_O", "blocks.1.attn"), "blocks.1.attn.W_O"),
        (lacking("hook_z", "blocks.1.attn"), "blocks.1.attn.hook_z"),
    ):
        with pytest.raises(ValueError, match=rf"^self_repair needs .*; this Minimal has no {missing}$"):
            needs.require(model, "self_repair")
    args = import_module("analyses.self_repair.__main__").arguments(["model"])
    with pytest.raises(ValueError, match="^self_repair needs the model's tokenizer"):
        needs.require(Minimal(models["plain"], None), "self_repair", args)
    with pytest.raises(ValueError, match="^sparsity needs a HookedTransformer; got an int$"):
        needs.require(3, "sparsity")


def test_every_question_says_in_its_help_and_in_contributing_what_it_needs(capsys):
    from sat_lens.commands import list_commands

    root = Path(needs.__file__).resolve().parent
    listed = {line.split()[2] for line in list_commands(root, "analyses").splitlines() if "-m analyses." in line}
    assert listed == {f"analyses.{question}" for question in needs.NEEDS}
    for question in needs.NEEDS:
        with pytest.raises(SystemExit):
            import_module(f"analyses.{question}" + ("" if question == "report" else ".__main__")).main(["--help"])
        assert " ".join(needs.sentence(question).split()) in " ".join(capsys.readouterr().out.split())
    assert f"\n{needs.markdown()}\n" in (root.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
