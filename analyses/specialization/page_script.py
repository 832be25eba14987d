"""The script and the style of the page of units: it reads one block of data and writes text, never markup.

Views: the index, and one unit by the hash of the address (`#L2.N17`). Every text goes in by `textContent`, or as the
value of an attribute that is no address and no handler.
"""

STYLE = """<style>
main { max-width: 1500px; } main > div > p { max-width: 110ch; } #unknown:empty { display: none; }
#index thead th { white-space: nowrap; }
#index td, #index th { padding: 0.2em 0.5em; }
#index thead th { position: sticky; top: 0; background: #fff; z-index: 2; }
#index tbody tr { cursor: pointer; } #index tbody tr:hover td { background: #f0f6fa; }
#index button { all: unset; cursor: pointer; } #index button:focus-visible { outline: 2px solid #005a8e; }
#index th[aria-sort="descending"] button::after { content: " ↓"; }
#index th[aria-sort="ascending"] button::after { content: " ↑"; }
#index td.words { text-align: left; white-space: normal; max-width: 34em; overflow-wrap: anywhere; }
#index td.words > span { display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical; overflow: hidden; }
#index th.words, #unit th.words { text-align: left; } #unit td.words { text-align: left; white-space: normal;
  min-width: 16em; overflow-wrap: anywhere; unicode-bidi: isolate; }
#search { font: inherit; width: min(100%, 32em); padding: 0.3em 0.6em; border: 1px solid #888; border-radius: 4px; }
.example { font-size: 0.95rem; line-height: 1.7; white-space: pre-wrap; overflow-wrap: anywhere; max-width: none;
  margin: 0.15em 0; }
.example span, .tokens span { border-radius: 3px; padding: 1px 0; unicode-bidi: isolate; }
.example .own { outline: 1.5px solid #555; } .tokens span { background: #eee; padding: 1px 5px; margin-right: 5px;
  white-space: pre; }
.around { display: flex; gap: 1.2em; flex-wrap: wrap; }
@media (max-width: 800px) { #index { overflow-x: auto; } #index thead th { position: static; } }
</style>
"""

SCRIPT = """
const data = JSON.parse(document.getElementById('units').textContent);
const units = data.units, word = id => data.vocabulary[id] ?? `id ${id}`;
const index = document.getElementById('index'), detail = document.getElementById('unit');
const search = document.getElementById('search'), found = document.getElementById('found');
const places = new Map(units.map((unit, i) => [unit.unit, i]));
let shown = units.map((_, i) => i);

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (name) made.className = name;
  return made;
}
function number(value, digits = 3) {
  if (value === null || value === undefined || value === '') return '–';
  if (typeof value !== 'number') return String(value);
  return value !== 0 && Math.abs(value) < 10 ** -digits ? value.toExponential(1) : value.toFixed(digits);
}
const percent = value => value === null || value === undefined ? '–' : (100 * value).toFixed(1) + ' %';
const told = unit => unit.target ? `${unit.target}: ${unit.label ?? '–'}` : '–';
const promotes = unit => unit.promoted.slice(0, 3).map(id => word(id).trim()).join(', ');

const columns = [
  ['unit', 'unit', unit => unit.unit, (a, b) => places.get(a.unit) - places.get(b.unit)],
  ['layer', 'layer', unit => unit.layer],
  ['usage', 'usage', unit => percent(unit.usage)],
  ['live', 'live', unit => percent(unit.live)],
  ['target', 'tells most of', told, (a, b) => told(a).localeCompare(told(b))],
  ['excess', 'bits', unit => number(unit.excess)],
  ['r', 'score', unit => number(unit.r, 2)],
  ['floor_shuffled', 'floor', unit => number(unit.floor_shuffled, 2)],
  ['promoted', 'promotes', promotes, (a, b) => promotes(a).localeCompare(promotes(b))],
  ['explanation', 'explanation', unit => unit.explanation, (a, b) => a.explanation.localeCompare(b.explanation)],
];
const WORDS = ['target', 'promoted', 'explanation'];

const rows = units.map(unit => {
  const row = element('tr');
  for (const [key, , read] of columns) {
    const cell = element('td', undefined, WORDS.includes(key) ? 'words' : '');
    if (key === 'unit') {
      const link = element('a', unit.unit);
      link.setAttribute('href', '#' + encodeURIComponent(unit.unit));
      cell.append(link);
    } else cell.append(element('span', read(unit)));
    row.append(cell);
  }
  row.addEventListener('click', () => { if (!String(getSelection())) location.hash = encodeURIComponent(unit.unit); });
  return row;
});
const table = element('table'), head = element('tr'), body = element('tbody');
let sorted = ['', 1];
for (const [key, title] of columns) {
  const cell = element('th', undefined, WORDS.includes(key) ? 'words' : ''), button = element('button', title);
  button.setAttribute('type', 'button');
  cell.setAttribute('scope', 'col');
  cell.append(button);
  button.addEventListener('click', () => sort(key));
  head.append(cell);
}
const top_ = element('thead');
top_.append(head);
table.append(top_, body);
index.append(table);

function sort(key) {
  const [, , , compare] = columns.find(column => column[0] === key), words = compare !== undefined;
  sorted = [key, sorted[0] === key ? -sorted[1] : words || key === 'layer' ? 1 : -1];
  const missing = unit => unit[key] === null || unit[key] === undefined;
  const order = units.map((_, i) => i).sort((i, j) => {
    const a = units[i], b = units[j];
    if (words) return sorted[1] * compare(a, b) || i - j;
    return missing(a) - missing(b) || sorted[1] * (a[key] - b[key]) || i - j;
  });
  [...head.children].forEach((cell, i) => {
    if (columns[i][0] === key) cell.setAttribute('aria-sort', sorted[1] > 0 ? 'ascending' : 'descending');
    else cell.removeAttribute('aria-sort');
  });
  body.append(...order.map(i => rows[i]));
  filter(order);
}

const active = unit => unit.top.flatMap(([, ids, levels]) => ids.filter((_, i) => levels[i] >= data.active));
const heard = units.map(unit => ({
  tokens: new Set([...active(unit), ...unit.promoted].map(id => word(id).trim().toLowerCase())),
  texts: [unit.unit, ...unit.explanations.map(row => row[1] ?? '')].map(text => text.toLowerCase()),
}));
function matches({ tokens, texts }, query) {
  const exact = query.length > 2 && query.startsWith('"') && query.endsWith('"');
  if (!exact) return [...tokens].some(token => token.includes(query)) || texts.some(text => text.includes(query));
  const token = query.slice(1, -1).trim();
  return tokens.has(token) || texts.some(text => text.includes(`"${token}"`) || text.includes(`" ${token}"`));
}
function filter(order) {
  const query = search.value.trim().toLowerCase();
  const hit = heard.map(unit => !query || matches(unit, query));
  shown = (order ?? [...body.children].map(row => rows.indexOf(row))).filter(i => hit[i]);
  rows.forEach((row, i) => { row.hidden = !hit[i]; });
  found.textContent = query ? `${shown.length} of ${units.length} units` : `${units.length} units`;
}
search.addEventListener('input', () => filter());

function tokens(ids) {
  const line = element('p', undefined, 'tokens');
  for (const id of ids) line.append(element('span', word(id).trim() || word(id)), ' ');
  if (!ids.length) line.textContent = '–';
  return line;
}
function example([at, ids, levels], maximum) {
  const line = element('p', undefined, 'example');
  ids.forEach((id, i) => {
    const step = Math.min(8, Math.round(Math.abs(levels[i]) / 100 * 8));
    const token = element('span', word(id), step ? (levels[i] > 0 ? 'up' : 'down') + step : '');
    if (i === at) token.classList.add('own');
    token.setAttribute('title', `${word(id).trim()}: ${number(levels[i] / 100 * (maximum ?? 0))}`);
    line.append(token);
  });
  return line;
}
function listing(header, lines, isWords) {
  const wide = element('div', undefined, 'wide'), made = element('table');
  const first = element('tr'), start = element('thead'), rest = element('tbody');
  header.forEach((title, i) => first.append(element('th', title, isWords(i) ? 'words' : '')));
  for (const line of lines) {
    const row = element('tr');
    line.forEach((cell, i) => row.append(element('td', cell, isWords(i) ? 'words' : '')));
    rest.append(row);
  }
  start.append(first);
  made.append(start, rest);
  wide.append(made);
  return wide;
}
const range = (value, low, high, digits = 3) =>
  value === null ? '–' : low === null ? number(value, digits)
    : `${number(value, digits)} [${number(low, digits)}, ${number(high, digits)}]`;

function draw(unit) {
  detail.replaceChildren();
  const around = element('p', undefined, 'around'), at = shown.indexOf(places.get(unit.unit));
  for (const [title, to] of [['← all units', null], ['previous', shown[at - 1]], ['next', shown[at + 1]]]) {
    if (to === undefined || (at < 0 && to !== null)) continue;
    const link = element('a', title);
    link.setAttribute('href', '#' + (to === null ? '' : encodeURIComponent(units[to].unit)));
    around.append(link);
  }
  detail.append(around, element('h2', unit.unit));
  const dead = !unit.top.length;
  detail.append(element('p', dead
    ? `Never active in the ${data.n_stories.examples} stories that explanations are made from.`
    : `Active at ${percent(unit.usage)} of tokens, in ${percent(unit.live)} of stories; greatest activation ` +
      `${number(unit.maximum)}. Its activity tells most of ${told(unit)} (${number(unit.excess)} bits beyond the ` +
      'null).'));
  if (unit.promoted.length) {
    detail.append(element('h3', 'Tokens that it promotes'), tokens(unit.promoted));
    detail.append(element('h3', 'Tokens that it suppresses'), tokens(unit.suppressed));
  }
  detail.append(element('h3', 'Explanations'), listing(
    ['explainer', 'explanation', 'bits', 'score r [95 %]', "floor: another's of the layer", 'of any layer', 'precision',
      'recall', 'false positives a token'],
    unit.explanations.map(([by, text, bits, r, low, high, ...rest]) =>
      [by, text, number(bits, 0), range(r, low, high, 2), ...rest.map(x => x === null ? '–' : x.toFixed(2))]),
    i => i === 1));
  for (const [key, title, how] of data.lists) {
    detail.append(element('h3', title), element('p', how, 'how'));
    if (!unit[key].length) detail.append(element('p', 'None.'));
    for (const one of unit[key]) detail.append(example(one, unit.maximum));
  }
  detail.append(element('h3', 'Measures against their nulls'), listing(
    ['measure', 'of', 'null', 'value [95 %]', 'null', 'beyond it', 'q', 'speaks for'],
    unit.measures.map(([metric, target, against, value, low, high, none, excess, q, label]) => [
      metric, target, against || '–', range(value, low, high), number(none), number(excess), number(q, 2),
      label ?? '–']),
    i => i < 3 || i === 7));
}
function route() {
  let name = '';
  try { name = decodeURIComponent(location.hash.slice(1)); } catch { name = location.hash.slice(1); }
  const unit = units[places.get(name)];
  document.getElementById('all').hidden = Boolean(unit);
  detail.hidden = !unit;
  document.getElementById('unknown').textContent = name && !unit ? `There is no unit ${name} here.` : '';
  if (unit) { draw(unit); scrollTo(0, 0); }
}
addEventListener('hashchange', route);
sort('r');
route();
"""
