'use strict';
// Sorting, filters, what is behind a row, copying, cost. Names are written as text and never as HTML.
(() => {
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (tag, text, attributes = {}) => {
  const node = document.createElement(tag);
  if (text !== undefined && text !== null) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
};
const sections = all('section[data-task]');
const KEYS = all('.board thead', document).length ? all('th', all('.board thead')[0]).map(
  (th, at, row) => th.dataset.q || (at === 0 ? 'model' : at === row.length - 2 ? 'seconds' : 'memory')) : [];
const TITLES = Object.fromEntries(all('input[name=question]').map(box => [box.value, box.parentNode.textContent.trim()]));
document.documentElement.classList.add('js');

// The state of the view stands in the address.
const state = new URLSearchParams(location.hash.startsWith('#task-') ? '' : location.hash.slice(1));
const listed = name => (state.get(name) || '').split(',').filter(Boolean);
function put(name, value) {
  if (value) state.set(name, value); else state.delete(name);
  const text = state.toString();
  history.replaceState(null, '', text ? `#${text}` : location.pathname + location.search);
}

// What is behind the rows of a task: a file that is loaded once.
const waiting = {}, loaded = {};
window.perturbenchTask = (number, data) => { loaded[number] = data; };
function load(section) {
  const number = section.dataset.number, file = section.dataset.file;
  if (loaded[number]) return Promise.resolve(loaded[number]);
  if (!file) return Promise.reject(new Error('nothing more is known of this task'));
  waiting[number] ||= new Promise((done, fail) => {
    const script = make('script', null, { src: file });
    script.onload = () => done(loaded[number]);
    script.onerror = () => { delete waiting[number]; fail(new Error(`the file ${file} does not lie beside this page`)); };
    document.head.append(script);
  });
  return waiting[number];
}

// Sorting: rows within models and within baselines, what is missing last.
const sort = document.getElementById('sort');
sort.addEventListener('change', () => { put('sort', sort.value); sortAll(); });
const original = new Map(all('.board tbody').map(body => [body, all('tr', body)]));
function cellOf(row, key) { return row.children[KEYS.indexOf(key)]; }
function valueOf(row, key) {
  if (key === 'model') return row.dataset.m;
  const value = cellOf(row, key).dataset.v;
  return value === undefined ? null : Number(value);
}
function sortAll() {
  const [key, way] = (state.get('sort') || '').split(':'), sign = way === 'up' ? 1 : -1;
  for (const [body, rows] of original) {
    const order = !KEYS.includes(key) ? rows : [...rows].sort((a, b) => {
      const [x, y] = [valueOf(a, key), valueOf(b, key)];
      if (x === null || y === null) return (x === null) - (y === null);
      return key === 'model' ? sign * -x.localeCompare(y) : sign * (x - y);
    });
    body.append(...order);
  }
  sort.value = state.get('sort') || '';
  for (const th of all('.board thead th')) {
    const mine = th.dataset.key === key;
    if (mine) th.setAttribute('aria-sort', way === 'up' ? 'ascending' : 'descending'); else th.removeAttribute('aria-sort');
  }
}
for (const head of all('.board thead')) all('th', head).forEach((th, at) => {
  th.dataset.key = KEYS[at];
  const button = make('button', th.firstChild.textContent.trim(), { type: 'button' });
  th.firstChild.replaceWith(button);
  button.addEventListener('click', () => {
    const now = state.get('sort');
    put('sort', now === `${KEYS[at]}:down` ? `${KEYS[at]}:up` : now === `${KEYS[at]}:up` ? '' : `${KEYS[at]}:down`);
    sortAll();
  });
});

// Filters.
const task = document.getElementById('task'), stratum = document.getElementById('stratum');
const boxes = name => all(`input[name=${name}]`);
function showAll() {
  if (task) {
    task.value = state.get('task') || '';
    for (const section of sections) section.classList.toggle('gone', Boolean(task.value) && section.dataset.task !== task.value);
    const across = document.getElementById('across');
    for (const node of [across, document.querySelector('nav')]) if (node) node.classList.toggle('gone', Boolean(task.value));
  }
  for (const [name, hide] of [['question', listed('without')], ['kind', listed('hide')]])
    for (const box of boxes(name)) box.checked = !hide.includes(box.value);
  for (const row of all('.board tr')) KEYS.forEach((key, at) => {
    if (row.children[at]) row.children[at].classList.toggle('gone', listed('without').includes(key));
  });
  for (const row of all('.board tbody tr')) row.classList.toggle('gone', listed('hide').includes(row.classList[0]));
}
if (task) task.addEventListener('change', () => { put('task', task.value); showAll(); showStratum(); });
for (const [name, key] of [['question', 'without'], ['kind', 'hide']]) for (const box of boxes(name))
  box.addEventListener('change', () => {
    put(key, boxes(name).filter(one => !one.checked).map(one => one.value).join(','));
    showAll();
  });
document.getElementById('reset').addEventListener('click', () => {
  for (const name of [...state.keys()]) put(name, '');
  showAll(); sortAll(); showStratum();
});

// Strata: the means over some conditions in place of the marks.
const kept = new Map();
const three = value => value === null || value === undefined ? '' : Number(value.toPrecision(3)).toString();
const range = ([mean, lo, hi]) => three(mean) + (lo === null ? '' : ` [${three(lo)}, ${three(hi)}]`);
async function fillStrata() {
  if (stratum.options.length > 1) return;
  const known = new Set();
  for (const section of sections) {
    const data = await load(section).catch(() => null);
    for (const one of data ? data.strata : []) known.add(`${one.stratum}: ${one.level}`);
  }
  for (const name of known) stratum.append(make('option', name));
}
async function showStratum() {
  for (const [cell, nodes] of kept) cell.replaceChildren(...nodes);
  kept.clear();
  const name = state.get('stratum') || '';
  if (name) await fillStrata();
  stratum.value = name;
  for (const section of sections) {
    const said = section.querySelector('.stratum');
    said.hidden = !name;
    if (!name) continue;
    const data = await load(section).catch(error => { said.textContent = error.message; return null; });
    if (!data) continue;
    const mine = data.strata.filter(one => `${one.stratum}: ${one.level}` === name);
    said.textContent = mine.length ? `Means over ${mine[0].n} conditions: ${name}. Ranks are of all conditions.`
      : `No conditions: ${name}.`;
    for (const row of all('.board tbody tr', section)) KEYS.forEach((key, at) => {
      const metric = data.questions[key], cell = row.children[at];
      if (!(key in TITLES)) return;
      const found = mine.find(one => one.metric === metric);
      kept.set(cell, [...cell.childNodes]);
      const value = found && found.rows[row.dataset.m];
      cell.replaceChildren(...(value ? [make('span', range(value))] : []));
    });
  }
}
stratum.addEventListener('focus', fillStrata);
stratum.addEventListener('pointerdown', fillStrata);
stratum.addEventListener('change', () => { put('stratum', stratum.value); showStratum(); });

// Tables that are made here.
function table(heads, rows) {
  const out = make('table'), head = make('tr');
  for (const text of heads) head.append(make('th', text, { scope: 'col' }));
  const top = make('thead'), body = make('tbody');
  top.append(head);
  for (const cells of rows) {
    const tr = make('tr');
    cells.forEach((cell, at) => tr.append(cell instanceof Node ? cell
      : make(at ? 'td' : 'th', typeof cell === 'number' ? three(cell) : cell, at ? {} : { scope: 'row' })));
    body.append(tr);
  }
  out.append(top, body);
  const wide = make('div', null, { class: 'wide' });
  wide.append(out);
  return wide;
}

// Behind a row: its runs and its conditions.
const dialog = document.querySelector('dialog');
function about(section, data, label) {
  const body = dialog.querySelector('.body'), row = all('.board tbody tr', section).find(one => one.dataset.m === label);
  dialog.querySelector('h2').textContent = `${label} on ${section.dataset.task}`;
  body.replaceChildren();
  if (row && row.firstChild.title) body.append(make('p', row.firstChild.title));
  const flags = all('details li', section).filter(li => li.firstChild.textContent === label).map(li => li.cloneNode(true));
  if (flags.length) { const list = make('ul'); list.append(...flags); body.append(list); }
  const runs = data.runs[label] || [];
  if (runs.length) {
    const p = make('p', 'Runs: ');
    runs.forEach((run, at) => p.append(at ? ', ' : '', make('a', `notebook of seed ${run.seed}`, { href: `${run.at}/notebook.ipynb` }),
      ' (', make('a', 'configuration', { href: `${run.at}/run.json` }), ')'));
    p.append('. The notebook draws predicted against observed genes of the best and worst conditions.');
    body.append(p);
  }
  const place = data.models.indexOf(label), keys = Object.keys(data.questions).filter(key => data.scores[key]);
  if (place < 0 || !keys.length) return;
  const rows = data.conditions.map((name, at) => [name, ...keys.map(key => data.scores[key][place][at]),
    ...data.strata_names.map(one => data.known[one][at])]);
  const sorter = keys[0], column = 1, lower = data.metrics[data.questions[sorter]].better === 'lower';
  rows.sort((a, b) => (a[column] === null) - (b[column] === null) || (lower ? 1 : -1) * (a[column] - b[column]));
  body.append(make('p', `Conditions, the best by ${data.questions[sorter]} first; means over seeds.`),
    table(['Condition', ...keys.map(key => `${TITLES[key]} (${data.questions[key]})`), ...data.strata_names], rows));
}
function open(section, label) {
  put('task', section.dataset.task); put('model', label); showAll();
  load(section).then(data => about(section, data, label), error => {
    dialog.querySelector('h2').textContent = label;
    dialog.querySelector('.body').replaceChildren(make('p', error.message));
  }).finally(() => { if (!dialog.open) dialog.showModal(); });
}
dialog.addEventListener('close', () => put('model', ''));
for (const section of sections) for (const th of all('.board tbody th', section)) {
  const label = th.parentNode.dataset.m, button = make('button', label, { type: 'button' });
  th.firstChild.replaceWith(button);
  button.addEventListener('click', () => open(section, label));
}

// Lists of metrics and pairs.
for (const section of sections) {
  for (const family of all('.family', section)) family.addEventListener('toggle', async () => {
    if (!family.open || family.querySelector('table')) return;
    const data = await load(section).catch(() => null);
    if (!data) return;
    const names = Object.keys(data.metrics).filter(name => data.metrics[name].kind === family.dataset.kind);
    family.querySelector('p').replaceWith(table(['Model', ...names], data.models.map(
      label => [label, ...names.map(name => data.metrics[name].rows[label] ? range(data.metrics[name].rows[label]) : '')])));
  });
  const pairs = section.querySelector('.pairs');
  if (pairs) pairs.addEventListener('toggle', async () => {
    if (!pairs.open || pairs.querySelector('.all')) return;
    const data = await load(section).catch(() => null);
    for (const [title, sentences] of Object.entries(data ? data.pairs : {})) {
      const more = make('details', null, { class: 'all' }), list = make('ul');
      more.append(make('summary', title), list);
      for (const text of sentences) list.append(make('li', text));
      pairs.append(more);
    }
  });
}

// Copying what is shown.
const FORMS = {
  csv: rows => rows.map(row => row.map(text => `"${text.replaceAll('"', '""')}"`).join(',')).join('\n'),
  markdown: rows => [rows[0], rows[0].map(() => '---'), ...rows.slice(1)]
    .map(row => `| ${row.map(text => text.replaceAll('|', '\\|')).join(' | ')} |`).join('\n'),
  latex: rows => `\\begin{tabular}{l${'r'.repeat(rows[0].length - 1)}}\n` + rows.map(row => row.map(
    text => text.replace(/[&%$#_{}]/g, '\\$&').replaceAll('–', '--')).join(' & ') + ' \\\\').join('\n') + '\n\\end{tabular}',
};
const shown = node => !node.classList.contains('gone');
function textOf(cell, key) {
  if (key === 'model') return cell.parentNode.dataset.m;
  const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), texts = [];
  while (walker.nextNode()) texts.push(walker.currentNode.textContent.trim());
  return texts.filter(Boolean).join('; ');
}
function view(section) {
  const keys = KEYS.filter(key => !listed('without').includes(key));
  const rows = all('.board tbody tr', section).filter(shown);
  return [keys.map(key => TITLES[key] || key), ...rows.map(row => keys.map(key => textOf(cellOf(row, key), key)))];
}
for (const section of sections) for (const button of all('[data-copy]', section)) button.addEventListener('click', async () => {
  const text = FORMS[button.dataset.copy](view(section)), said = section.querySelector('[role=status]');
  window.perturbenchCopied = text;
  try { await navigator.clipboard.writeText(text); said.textContent = 'copied'; }
  catch { said.replaceChildren(make('textarea', text, { rows: 6, cols: 60, 'aria-label': 'The table as text' })); }
});

// Score against cost.
const NS = 'http://www.w3.org/2000/svg';
const draw = (tag, attributes, text) => {
  const node = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
function plot(section, key) {
  const points = all('.board tbody tr', section).map(row => ({ label: row.dataset.m, kind: row.classList[0],
    x: valueOf(row, 'seconds'), y: valueOf(row, key) })).filter(p => p.x !== null && p.y !== null)
    .map(p => ({ ...p, x: Math.max(-p.x, .01) }));
  const figure = section.querySelector('.cost figure');
  figure.replaceChildren();
  if (!points.length) { figure.append(make('p', 'No costs are known.')); return; }
  const [W, H, L, B] = [640, 360, 55, 40], logs = points.map(p => Math.log10(p.x)), ys = points.map(p => p.y);
  const span = (low, high, from, to) => value => from + (value - low) / (high - low || 1) * (to - from);
  const [x0, x1] = [Math.floor(Math.min(...logs)), Math.ceil(Math.max(...logs)) || 1];
  const y0 = Math.max(Math.min(...ys, 0), -1), y1 = Math.max(...ys, y0 + .1);
  const X = span(x0, Math.max(x1, x0 + 1), L, W - 110), Y = span(y0, y1, H - B, 15);
  const svg = draw('svg', { viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': `Score against seconds, ${TITLES[key]}; the same numbers are in the table` });
  for (let at = x0; at <= Math.max(x1, x0 + 1); at++) svg.append(draw('line', { x1: X(at), x2: X(at), y1: 15, y2: H - B, stroke: 'var(--line)' }),
    draw('text', { x: X(at), y: H - B + 16, 'text-anchor': 'middle' }, String(Number((10 ** at).toPrecision(3)))));
  for (const level of [y0, 0, 1, y1].filter((v, at, list) => v >= y0 && v <= y1 && list.indexOf(v) === at))
    svg.append(draw('line', { x1: L, x2: W - 110, y1: Y(level), y2: Y(level), stroke: 'var(--line)' }),
      draw('text', { x: L - 6, y: Y(level) + 4, 'text-anchor': 'end' }, level.toFixed(2)));
  svg.append(draw('text', { x: (L + W - 110) / 2, y: H - 6, 'text-anchor': 'middle' }, 'seconds'));
  const front = points.filter(p => !points.some(q => q.x <= p.x && q.y >= p.y && (q.x < p.x || q.y > p.y))).sort((a, b) => a.x - b.x);
  svg.append(draw('polyline', { points: front.map(p => `${X(Math.log10(p.x))},${Y(Math.max(p.y, y0))}`).join(' '), fill: 'none', stroke: 'var(--soft)', 'stroke-dasharray': '4 3' }));
  for (const p of points) {
    const [x, y] = [X(Math.log10(p.x)), Y(Math.max(p.y, y0))];
    svg.append(draw('circle', { cx: x, cy: y, r: 5, fill: p.kind === 'baseline' ? 'var(--base)' : 'var(--mark)' }));
    if (front.includes(p)) svg.append(draw('text', { x: x + 8, y: y - 6 }, p.label));
  }
  figure.append(svg);
}
for (const section of sections) {
  const cost = section.querySelector('.cost'), select = cost.querySelector('select');
  for (const key of Object.keys(TITLES)) if (all('.board tbody tr', section).some(row => !cellOf(row, key).classList.contains('unfit') && valueOf(row, key) !== null))
    select.append(make('option', TITLES[key], { value: key }));
  if (!select.options.length) { cost.remove(); continue; }
  select.addEventListener('change', () => plot(section, select.value));
  cost.addEventListener('toggle', () => { if (cost.open) plot(section, select.value); });
}

// A table that is shown as cards is a table still.
for (const [tag, role] of Object.entries({ table: 'table', thead: 'rowgroup', tbody: 'rowgroup', tr: 'row', td: 'cell' }))
  for (const node of all(tag === 'table' ? '.board' : `.board ${tag}`)) node.setAttribute('role', role);
for (const th of all('.board th')) th.setAttribute('role', th.scope === 'row' ? 'rowheader' : 'columnheader');

showAll(); sortAll();
if (state.get('stratum')) showStratum();
if (state.get('model')) {
  const section = sections.find(one => one.dataset.task === state.get('task')) || sections[0];
  if (section) open(section, state.get('model'));
}
})();
