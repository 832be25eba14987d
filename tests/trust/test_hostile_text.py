"""Text that attacks the page it is shown on: a corpus, tokens and a checkpoint's name, through every question's pages.

Every page is opened in a browser: no script of the text's may run, and no request may leave.
"""

import re
import shutil
import subprocess
from importlib import import_module

import pytest
import torch

from sat_lens import SelfAblatingTransformer, SelfAblation, save
from sat_lens._tl import HookedTransformerConfig

PAYLOADS = (
    "<script>{do}</script>",
    "</script><script>{do}</script>",
    "<img src={url} onerror={do}>",
    '"><img src={url} onload={do}>',
    "' onmouseover='{do}' onfocus='{do}' autofocus='",
    "</title></style></textarea><svg onload={do}>",
    "<iframe src=javascript:{do}></iframe>",
    "<link rel=stylesheet href={url}>",
    "<a href=javascript:{do}>x</a>",
    "-->]]><script>{do}</script><!--",
    "${{{do}}}",
    "%{{x}}<b onclick={do}>b</b>",
    "</g></svg><style>@import '{url}';</style>",
    "\\u003cscript\\u003e{do}\\u003c/script\\u003e",
)
SEPARATOR = "\u00b6"
QUESTIONS = {
    "leakage": ["--quick", "--n", "8"],
    "specialization": ["--quick", "--target", "current_token", "position", "--n", "12", "--page"],
    "probing": ["--target", "current_token", "position", "--n", "12", "--folds", "3", "--no-erasure"],
    "self_repair": ["--tokens", "300"],
    "sparsity": ["--n", "4"],
}
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=4000"
)


def hostile_words(address: str) -> list[str]:
    do = f"document.documentElement.dataset.ran=1;new/**/Image().src='{address}/ran'"
    return [payload.format(do=do, url=f"{address}/asked") for payload in PAYLOADS]


def hostile_tokenizer(words: list[str]):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<|endoftext|>", *words]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(f"[{SEPARATOR}\n]+"), "removed")
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=vocabulary[0], eos_token=vocabulary[0])


def browsed(page, profile) -> str:
    """What a browser makes of a page."""
    command = ["chromium", *FLAGS.split(), f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to show the pages")
@pytest.mark.slow
def test_no_page_runs_or_fetches_what_its_text_says(server, tmp_path, monkeypatch):
    address, asked = server
    words = hostile_words(address)
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=24, d_vocab=len(words) + 1, n_ctx=32, act_fn="gelu",
        normalization_type="LN", seed=0, device="cpu",
    )  # fmt: skip
    model = SelfAblatingTransformer(cfg, ablation=SelfAblation(mask="local", k_attn=3, k_mlp=2))
    model.tokenizer = hostile_tokenizer(words)
    name = "<img src=x onerror=document.documentElement.dataset.ran=1>"
    save(model, tmp_path / name)
    generator = torch.Generator().manual_seed(0)
    texts = [SEPARATOR.join(words[i] for i in torch.randint(len(words), (30,), generator=generator)) for _ in range(16)]
    (tmp_path / "corpus.txt").write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    out = tmp_path / "results"
    for question, flags in QUESTIONS.items():
        corpus = ["--corpus", str(tmp_path / "corpus.txt")]
        main = import_module(f"analyses.{question}.__main__").main
        main([str(tmp_path / name), *corpus, *flags, "--out", str(out), "--quiet"])
    pages = sorted(out.rglob("*.html"))
    assert len(pages) >= 15 and {page.relative_to(out).parts[0] for page in pages} == set(QUESTIONS)
    hostile = 0
    for page in pages:
        written = page.read_text(encoding="utf-8")
        hostile += "dataset.ran" in written
        shown = browsed(page, tmp_path / "profile")
        assert not re.search(r"<html[^>]*data-ran", shown), f"a script of the text ran on {page.name}"
        assert len(shown) > 500, page.name
    assert not asked, f"requests left: {asked[:3]}"
    assert hostile >= 4, "the text is on the pages"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium to show the pages")
@pytest.mark.slow
def test_the_browser_would_have_told(server, tmp_path):
    address, asked = server
    page = tmp_path / "bare.html"
    page.write_text(f"<html><body>{hostile_words(address)[0]}{'x' * 500}</body></html>", encoding="utf-8")
    assert re.search(r"<html[^>]*data-ran", browsed(page, tmp_path / "profile"))
    assert asked == ["/ran"]
