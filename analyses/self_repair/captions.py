"""How a figure says what was asked: which tokens, which ablation, how many."""

from analyses import figures
from analyses.result import Result

NAMED = {"attn": "attention layers", "mlps": "MLPs", "all": "heads and MLPs"}
"""Components as a caption says them, where that is not the knob's own word."""


def titled(result: Result, text: str) -> str:
    """With the model, and a second line that says how it was asked."""
    return f"{figures.titled(result.meta, text)}<br><sup>{caption(result)}</sup>"


def caption(result: Result) -> str:
    """Selection, ablation, stream and n."""
    knobs = result.meta["knobs"]
    stream = knobs["stream"] + (f", masks {knobs['masks']}" if knobs["stream"] != "clean" else "")
    return (
        f"{knobs['selection']}; {knobs['ablation']}; stream {stream}; {result.meta['n_measured']:,} tokens of "
        f"{knobs['n_stories']} stories"
    )
