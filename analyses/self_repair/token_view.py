"""Where in a text a component is made up for, drawn by circuitsvis: tokens coloured by its self-repair.

Beside `text_page`, which draws the same without it and tells more of each token. The package's script is put into the
page and the values beside it as JSON; the page asks no server for anything.

Source: circuitsvis 1.43.3 (its component ColoredTokens).
"""

import json

from analyses.figures import COLORS, Page
from analyses.page import document, encodable, escaped, script_data
from analyses.result import Result
from analyses.self_repair.text_page import STRONGEST_LOGITS

DRAW = """
for (const block of document.querySelectorAll('script.tokens')) {
  CircuitsVis.render(block.previousElementSibling.id, CircuitsVis.ColoredTokens, JSON.parse(block.textContent));
}
"""
HOW = (
    "A token's colour is the component's self-repair where the model has read it and predicts the next one, in logits. "
    "Blue: made up for; orange: more is lost than was removed; white: neither, or not measured. All tokens are shown, "
    "selected or not; point at one for its value."
)


def token_view(result: Result, bundle: str) -> Page:
    """The first stories, coloured.

    Args:
        result: of `story_self_repair`, with texts.
        bundle: circuitsvis's script, of `circuitsvis_bundle`.
    """
    texts = result.meta["texts"]
    name, reach = texts["component"], STRONGEST_LOGITS
    knobs = result.meta["knobs"]
    how = f"{HOW} Strongest from {reach:g} logit on. Replaced by: {knobs['ablation']}; stream {knobs['stream']}."
    parts = [f"<p>{escaped(how)}</p>\n"]
    for i, (words, values) in enumerate(zip(texts["stories"], texts["self_repair"], strict=True)):
        data = {
            "tokens": [encodable(str(word)) for word in words], "values": [value or 0.0 for value in values],
            "minValue": -reach, "maxValue": reach, "negativeColor": COLORS[1], "positiveColor": COLORS[0],
        }  # fmt: skip
        block = f'<script type="application/json" class="tokens">{script_data(json.dumps(data))}</script>'
        parts.append(f'<h2>Story {i + 1}</h2>\n<div class="wide" id="tokens-{i}"></div>{block}\n')
    title = f"Self-repair of {name}: {result.meta.get('checkpoint', 'a model')}"
    return Page(document(title, "".join(parts), (bundle, DRAW)))
