"""Self-repair of real models: a llama2.c checkpoint whole, and those of the hub against published arrays."""

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.result import Result
from analyses.self_repair.__main__ import main
from analyses.self_repair.repair import stories_of_tokens, story_self_repair

AGREES = 0.9
"""Correlation over heads; two published runs of one model agree to 0.91 to 0.96."""


@pytest.mark.real_data
@pytest.mark.slow
def test_grouped_heads_with_rms_norm_and_gated_mlps_go_through_whole(real_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = str(real_data / "stories260K" / "stories260K.bin")
    main([checkpoint, "--tokens", "1200", "--quiet"])
    result = Result.load(tmp_path / "results" / "self_repair" / "stories260K")
    table = result.table
    assert len(table) == 5 * 8 and result.meta["closure"] < 1e-3 and table.self_repair.notna().all()
    shares = table.sr_heads + table.sr_mlps + table.sr_ln + table.sr_own
    assert (shares - table.self_repair).abs().max() < 1e-4
    assert (table.de > 0).all()  # top tokens by direct effect
    assert table.sr_heads[table.layer == 4].abs().max() < 1e-5  # no head comes after the last layer's


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize(
    ("published", "name", "repo"),
    [("gpt2-small", "gpt2", "gpt2"), ("pythia-160m", "pythia-160m", "EleutherAI/pythia-160m")],
)
def test_a_model_of_the_hub_agrees_with_the_published_arrays(real_data, published, name, repo):
    """Only where the weights are cached; 6,000 tokens instead of 100,000, and stories instead of the Pile."""
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "pytorch_model.bin")
    if not any(isinstance(try_to_load_from_cache(repo, file), str) for file in files):
        pytest.skip(f"{name} is not cached: run once with a network to fetch it")
    from sat_lens.checkpoint import load_any

    model = load_any(name).eval()
    model.cfg.n_ctx = min(model.cfg.n_ctx, 128)
    with torch.no_grad():
        texts = stories_of_tokens(None, model, 6000)
        table = story_self_repair(model, texts).table
    known = pd.read_csv(real_data / "self_repair_reference_arrays.csv")
    known = known[(known.model == published) & (known["filter"] == "top0.02")].sort_values(["layer", "head"])
    ours = table.sort_values(["layer", "head"])
    for mine, theirs in (("de", "direct_effects"), ("ade", "ablated_direct_effects"), ("dlogit", "logit_diff")):
        assert np.corrcoef(ours[mine], known[theirs])[0, 1] >= AGREES, mine
