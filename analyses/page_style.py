"""How a page looks: readable on a telephone and on paper, and dark for those whose system is."""

STEPS = 8
"""Colours on each side of zero for a token."""


DARK = """@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; background: #1a1a1a; }
  body { color-scheme: light; filter: invert(0.9) hue-rotate(180deg); }
}
"""
"""Lightness turned over and hues kept, figures too: drawings and their colours are made once, for white paper."""


def _token_colors() -> str:
    """Classes `up1`..`up8` (orange) and `down1`..`down8` (blue), paler near zero; dark text stays readable."""
    rules = []
    for name, rgb in (("up", "213,94,0"), ("down", "0,114,178")):
        rules += [f".{name}{step}{{background:rgba({rgb},{0.6 * step / STEPS:.3f})}}" for step in range(1, STEPS + 1)]
    return "\n".join(rules)


STYLE = (
    """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #222; font: 16px/1.5 Helvetica, Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.4em 0; }
h2 { font-size: 1.35rem; margin: 2em 0 0.4em; padding-top: 0.4em; border-top: 2px solid #222; overflow-wrap: anywhere; }
h3 { font-size: 1.1rem; margin: 1.6em 0 0.3em; }
h4 { font-size: 1rem; margin: 0 0 0.3em; }
p, figcaption, li { max-width: 80ch; }
a { color: #005a8e; }
nav ul { padding-left: 1.2em; margin: 0.3em 0; }
.warning { border-left: 4px solid #d55e00; padding: 0.2em 0.8em; background: #fdf3ea; }
.wide { overflow-x: auto; margin: 0.4em 0 0.8em; }
table { border-collapse: collapse; font-size: 0.88rem; }
th, td { padding: 0.25em 0.7em; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top; }
td { white-space: nowrap; font-variant-numeric: tabular-nums; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: #fff; }
.pairs td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.pairs th { font-weight: normal; color: #444; white-space: nowrap; }
.figures { display: grid; gap: 20px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
figure { margin: 0.8em 0; min-width: 0; break-inside: avoid; }
.keys { margin: 0; font-size: 0.85rem; } .keys span { white-space: nowrap; margin-right: 1em; }
.keys i { display: inline-block; width: 22px; margin-right: 5px; vertical-align: middle; }
.plot { max-width: 660px; }
figcaption, .how { color: #444; font-size: 0.88rem; }
pre { font-size: 0.78rem; overflow-x: auto; background: #f6f6f6; padding: 0.8em; }
details { margin: 0.5em 0; border: 1px solid #ddd; border-radius: 4px; padding: 0.3em 0.7em; }
summary { cursor: pointer; font-size: 0.92rem; }
.story { font-size: 1.05rem; line-height: 1.9; white-space: pre-wrap; overflow-wrap: anywhere; max-width: none; }
.story span, .legend span, .card b { border-radius: 3px; padding: 1px 0; unicode-bidi: isolate; }
.legend span { padding: 1px 6px; }
.mark { color: #767676; }
.cards { display: flex; flex-wrap: wrap; gap: 4px; margin: 0.6em 0; }
.card { width: 92px; border: 1px solid #ddd; border-radius: 3px; padding: 2px 3px; font-size: 10px; line-height: 1.25; }
.card b { display: block; font-size: 12px; font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; }
.card small { display: block; font-size: 10px; color: #333; }
.heads { display: flex; gap: 1px; margin: 1px 0; }
.heads i { flex: 1 1 0; min-width: 0; height: 12px; line-height: 12px; text-align: center; font-style: normal;
  font-size: 9px; background: #eee; }
.heads .s1 { background: #cfe8dd; } .heads .s2 { background: #9fd2bc; }
.heads .s3 { background: #66b996; } .heads .s4 { background: #2fa276; }
.all { font-size: 0.8rem; } .all :is(th, td):nth-child(-n + 2) { white-space: pre-wrap; text-align: left; }
@media print {
  main { max-width: none; padding: 0; }
  body { font-size: 11pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .wide { overflow: visible; } table { font-size: 8pt; } tr, .card { break-inside: avoid; }
  .figures { display: block; } h2[id] { break-before: page; }
  h3, h4 { break-after: avoid; }
}
"""
    + DARK
    + _token_colors()
    + "\n"
)
