"""Fixtures that the tests share: real data, small models whose every weight matters, no network."""

import gc
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REAL_DATA = "SAT_LENS_REAL_DATA"
WITHOUT_NETWORK = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
os.environ.update(WITHOUT_NETWORK)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is first imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what runs in its background
    config.addinivalue_line("markers", f"real_data: needs the folder that {REAL_DATA} names")
    config.addinivalue_line("markers", "leaves_hooks: leaves hooks on a model on purpose")
    config.addinivalue_line("markers", "slow: takes more than a few seconds")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many cases were tried on purpose (see `tests/trust`), by kind; of all processes together."""
    counts: dict[str, int] = {}
    for report in terminalreporter.getreports("passed"):
        for kind, n in (value for name, value in report.user_properties if name == "tried"):
            counts[kind] = counts.get(kind, 0) + n
    if counts:
        terminalreporter.section("tried on purpose: bad input and faults")
        for kind, n in sorted(counts.items()):
            terminalreporter.line(f"{n:>8,}  {kind}")
        terminalreporter.line(f"{sum(counts.values()):>8,}  in all")


def missing_real_data() -> str | None:
    """Why the real data cannot be used, or None where they can."""
    folder = os.environ.get(REAL_DATA)
    if not folder:
        return f"{REAL_DATA} is not set: no real data to test with"
    return None if Path(folder).is_dir() else f"{REAL_DATA} names no folder: {folder}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if reason := missing_real_data():
        for item in items:
            if item.get_closest_marker("real_data"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data; a test that asks for it skips where there is none."""
    if reason := missing_real_data():
        pytest.skip(reason)
    return Path(os.environ[REAL_DATA]).resolve()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-exact comparisons need one thread; torch is not imported for the tests that do without."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    yield


hooked: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""Every HookPoint that got a hook since the test began, and is still alive."""


def watch_hooks() -> None:
    """Let every HookPoint that gets a hook be remembered; nothing, before TransformerLens is imported."""
    module = sys.modules.get("transformer_lens.hook_points")
    if module is None or hasattr(module.HookPoint.add_hook, "unwatched"):
        return
    original = module.HookPoint.add_hook

    def add_hook(self: Any, *args: Any, **kwargs: Any) -> None:
        hooked.add(self)
        original(self, *args, **kwargs)

    add_hook.unwatched = original  # pyright: ignore[reportFunctionMemberAccess]
    module.HookPoint.add_hook = add_hook


def hooks_left() -> list[str]:
    """Names of the points that still have a hook, but for permanent ones."""

    def found() -> list[str]:
        return sorted(str(point.name) for point in hooked if point.has_hooks("both", including_permanent=False))

    if found():
        gc.collect()  # a point and its hook refer to each other
    return found()


@pytest.fixture(autouse=True)
def no_hooks_left(request: pytest.FixtureRequest) -> Iterator[Callable[[], list[str]]]:
    """After each test no model may have a hook left, unless it is marked `leaves_hooks`; what to ask meanwhile."""
    watch_hooks()
    hooked.clear()
    yield hooks_left
    left = hooks_left()
    hooked.clear()
    assert not left or request.node.get_closest_marker("leaves_hooks"), f"hooks were left on {left}"


@pytest.fixture
def tiny_config() -> Callable[..., Any]:
    """`tiny_config(**changes)`: a HookedTransformerConfig of the paper's layout, two layers, 29 ids."""

    def build(**changes: Any) -> Any:
        import torch

        from sat_lens._tl import HookedTransformerConfig

        fields = {
            "n_layers": 2,
            "d_model": 16,
            "n_heads": 4,
            "d_head": 4,
            "d_mlp": 24,
            "d_vocab": 29,
            "n_ctx": 16,
            "act_fn": "gelu_new",
            "normalization_type": "LN",
            "use_attn_scale": False,
            "tie_word_embeddings": True,
            "dtype": torch.float64,
            "device": "cpu",
        }
        return HookedTransformerConfig(**fields | changes)

    return build


@pytest.fixture
def tiny_model(tiny_config: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """`tiny_model(ablation={...}, seed=0, **config changes)`; mask "local", k 3 and 5 by default.

    Every weight, bias and gain is random, so that none of them can be left out unnoticed. When the
    test ends, no model may have a hook left.
    """
    made = []

    def build(ablation: dict[str, Any] | None = None, seed: int = 0, **changes: Any) -> Any:
        from sat_lens import SelfAblatingTransformer, SelfAblation

        chosen = SelfAblation(**{"k_attn": 3, "k_mlp": 5} | (ablation or {}))
        model = SelfAblatingTransformer(tiny_config(**changes), ablation=chosen)
        perturb(model, seed)
        made.append(model.eval())
        return model

    yield build
    for model in made:
        assert not hooks_on(model), f"hooks were left on {hooks_on(model)}"


@pytest.fixture
def tiny_tokenizer() -> Any:
    """29 ids: `<|endoftext|>` and the words w1 to w28, split at spaces; pads on the right."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<|endoftext|>", *(f"w{i}" for i in range(1, 29))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), words[0])
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="right", **special)


@pytest.fixture
def tokens() -> Any:
    """Random ids [2, 9] of the tiny vocabulary."""
    import torch

    return torch.randint(29, (2, 9), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def no_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """`model.losses` takes the hooked path."""
    monkeypatch.setattr("sat_lens.fast.applies", lambda model: False)


def perturb(model: Any, seed: int) -> None:
    """Random normal weights of moderate size; norm gains around 1."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_gain = name.endswith(".w")
            parameter.copy_(noise * 0.3 + (1.0 if is_gain else 0.0))


def hooks_on(model: Any) -> list[str]:
    """Names of the modules that carry a hook of any kind."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "fwd_hooks", "bwd_hooks")
    return [name for name, module in model.named_modules() if any(getattr(module, kind, None) for kind in kinds)]


@pytest.fixture
def ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """`ranks(n, function)`: what `function(rank)` gives in each of n processes that torchrun's variables join.

    Forked, so that nothing is imported again. A rank that died has None. Tensors and plain values only.
    """
    import multiprocessing
    import socket

    import torch

    from sat_lens.distributed import launched

    def child(rank: int, n: int, port: int, function: Callable[[int], Any], path: Path) -> None:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
        with launched("cpu"):
            torch.save(function(rank), path)

    def run(n: int, function: Callable[[int], Any], timeout: float = 60) -> list[Any]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        paths = [tmp_path / f"rank-{port}-{rank}" for rank in range(n)]
        fork = multiprocessing.get_context("fork")
        processes = [fork.Process(target=child, args=(i, n, port, function, path)) for i, path in enumerate(paths)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout)
        still = [process for process in processes if process.is_alive()]
        for process in still:
            process.kill()
        assert not still, "a rank waits for ever"
        return [torch.load(path, weights_only=True) if path.exists() else None for path in paths]

    return run
