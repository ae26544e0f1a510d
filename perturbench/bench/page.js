'use strict';
// Sorting, filters, what is behind a row, figures, copying. Names are written as text and never as HTML.
(() => {
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);

function make(tag, text, attributes = {}) {
  const node = document.createElement(tag);
  if (text !== undefined && text !== null) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
function button(text, action) {
  const node = make('button', text, { type: 'button' });
  node.addEventListener('click', action);
  return node;
}
function choice(options, value, action) {
  const select = make('select');
  for (const [key, text] of options) select.append(make('option', text, { value: key }));
  select.value = value;
  select.addEventListener('change', () => action(select.value));
  return select;
}
function labelled(text, control) {
  const node = make('label', text);
  node.append(' ', control);
  return node;
}
const known = value => value !== null && value !== undefined;
const three = value => known(value) ? Number(value.toPrecision(3)).toString() : '';
const range = ([mean, lo, hi]) => three(mean) + (known(lo) ? ` [${three(lo)}, ${three(hi)}]` : '');

const sections = all('section[data-task]');
const bodies = all('.board tbody');
const rowsOf = section => all('.board tbody tr', section);
const KEYS = all('th', one('.board thead')).map(th => th.dataset.key);
const QUESTIONS = Object.fromEntries(all('input[name=question]').map(
  box => [box.value, box.parentNode.textContent.trim()]));
const TEXTS = new Map(all('#models dt').map(term => [term.textContent, term.nextElementSibling.textContent]));
document.documentElement.classList.add('js');
for (const th of all('.board tbody th')) {
  const label = th.firstChild.textContent;
  th.parentNode.dataset.m = label;
  if (TEXTS.has(label)) th.title = TEXTS.get(label);
}

// The state of the view stands in the address.
const state = new URLSearchParams(location.hash.startsWith('#task-') ? '' : location.hash.slice(1));
const get = name => state.get(name) || '';
const listed = name => get(name).split(',').filter(Boolean);
function put(changes) {
  for (const [name, value] of Object.entries(changes)) if (value) state.set(name, value); else state.delete(name);
  const text = state.toString();
  history.replaceState(null, '', text ? `#${text}` : location.pathname + location.search);
}

// What is behind rows lies in files beside the page, each of which is loaded once.
const scripts = {}, tasksData = {}, genesData = {};
window.perturbenchTask = (number, data) => { tasksData[number] = data; };
window.perturbenchGenes = (number, label, data) => { genesData[`${number} ${label}`] = data; };
function loadFile(file) {
  scripts[file] ||= new Promise((done, fail) => {
    const script = make('script', null, { src: file });
    script.onload = done;
    script.onerror = () => {
      delete scripts[file];
      fail(new Error(`the file ${file} does not lie beside this page`));
    };
    document.head.append(script);
  });
  return scripts[file];
}
async function load(section) {
  const number = section.dataset.number, file = section.dataset.file;
  if (!tasksData[number] && !file) throw new Error('nothing more is known of this task');
  if (!tasksData[number]) await loadFile(file);
  return tasksData[number];
}
async function loadGenes(section, data, label) {
  const key = `${section.dataset.number} ${label}`, file = data.genes[label];
  if (!genesData[key] && file) await loadFile(file);
  return genesData[key];
}

// Sorting: rows within models and within baselines, what is missing last.
const sort = one('#sort');
const original = new Map(bodies.map(body => [body, all('tr', body)]));
const cellOf = (row, key) => row.children[KEYS.indexOf(key)];
const COSTS = ['seconds', 'memory', 'parameters'], UNITS = { k: 1e3, M: 1e6, G: 1e9 };
const numberOf = text => parseFloat(text) * (UNITS[text.slice(-1)] || 1);
// What a cell is sorted by: more is better, so that a cost is negative; null where there is nothing.
function valueOf(row, key) {
  if (key === 'model') return row.dataset.m;
  const cell = cellOf(row, key), value = cell.dataset.v;
  if (COSTS.includes(key)) return cell.textContent ? -numberOf(cell.textContent) : null;
  return value === undefined ? null : Number(value);
}
function compareBy(key, sign) {
  return (a, b) => {
    const [x, y] = [valueOf(a, key), valueOf(b, key)];
    if (x === null || y === null) return (x === null) - (y === null);
    return key === 'model' ? sign * -x.localeCompare(y) : sign * (x - y);
  };
}
function sortAll() {
  const [key, way] = get('sort').split(':'), sign = way === 'up' ? 1 : -1;
  for (const [body, rows] of original)
    body.append(...(KEYS.includes(key) ? [...rows].sort(compareBy(key, sign)) : rows));
  sort.value = get('sort');
  for (const th of all('.board thead th')) {
    th.removeAttribute('aria-sort');
    if (th.dataset.key === key) th.setAttribute('aria-sort', way === 'up' ? 'ascending' : 'descending');
  }
}
function sortBy(value) {
  put({ sort: value });
  sortAll();
}
function nextSort(key) {
  const next = { [`${key}:down`]: `${key}:up`, [`${key}:up`]: '' };
  return get('sort') in next ? next[get('sort')] : `${key}:down`;
}
sort.addEventListener('change', () => sortBy(sort.value));
for (const th of all('.board thead th')) {
  const text = th.firstChild.textContent.trim();
  th.firstChild.replaceWith(button(text, () => sortBy(nextSort(th.dataset.key))));
}

// Filters.
const task = one('#task'), stratum = one('#stratum');
const FILTERS = { question: 'without', kind: 'hide' };
const boxes = name => all(`input[name=${name}]`);
function showTask() {
  if (!task) return;
  task.value = get('task');
  for (const section of sections)
    section.classList.toggle('gone', Boolean(task.value) && section.dataset.task !== task.value);
  for (const node of all('#across, nav')) node.classList.toggle('gone', Boolean(task.value));
}
function showAll() {
  showTask();
  for (const [name, key] of Object.entries(FILTERS))
    for (const box of boxes(name)) box.checked = !listed(key).includes(box.value);
  for (const row of all('.board tr'))
    [...row.children].forEach((cell, at) => cell.classList.toggle('gone', listed('without').includes(KEYS[at])));
  for (const row of all('.board tbody tr')) row.classList.toggle('gone', listed('hide').includes(row.classList[0]));
}
if (task) task.addEventListener('change', () => {
  put({ task: task.value });
  showAll();
  showStratum();
});
for (const [name, key] of Object.entries(FILTERS)) for (const box of boxes(name)) box.addEventListener('change', () => {
  put({ [key]: boxes(name).filter(other => !other.checked).map(other => other.value).join(',') });
  showAll();
});
one('#reset').addEventListener('click', () => {
  put(Object.fromEntries([...state.keys()].map(name => [name, ''])));
  showAll();
  sortAll();
  showStratum();
});

// Strata: the means over some conditions in place of the marks.
const hidden = new Map();
const levelOf = part => `${part.stratum}: ${part.level}`;
async function fillStrata() {
  if (stratum.options.length > 1) return;
  const names = new Set();
  for (const section of sections) {
    const data = await load(section).catch(() => null);
    for (const part of data ? data.strata : []) names.add(levelOf(part));
  }
  for (const name of names) stratum.append(make('option', name));
}
function fillCells(section, data, parts) {
  for (const row of rowsOf(section)) for (const key of Object.keys(QUESTIONS)) {
    const cell = cellOf(row, key), found = parts.find(part => part.metric === data.questions[key]);
    const value = found && found.rows[row.dataset.m];
    hidden.set(cell, [...cell.childNodes]);
    cell.replaceChildren(...(value ? [make('span', range(value))] : []));
  }
}
async function showStratum() {
  for (const [cell, nodes] of hidden) cell.replaceChildren(...nodes);
  hidden.clear();
  const name = get('stratum');
  if (name) await fillStrata();
  stratum.value = name;
  for (const section of sections) {
    const said = one('.stratum', section);
    said.hidden = !name;
    if (!name) continue;
    const data = await load(section).catch(error => { said.textContent = error.message; });
    if (!data) continue;
    const parts = data.strata.filter(part => levelOf(part) === name);
    said.textContent = parts.length ? `Means over ${parts[0].n} conditions: ${name}. Ranks are of all conditions.`
      : `No conditions: ${name}.`;
    fillCells(section, data, parts);
  }
}
for (const event of ['focus', 'pointerdown']) stratum.addEventListener(event, fillStrata);
stratum.addEventListener('change', () => {
  put({ stratum: stratum.value });
  showStratum();
});

// Tables that are made here; a cell is text, a number or a node.
function cellNode(cell, at) {
  if (cell instanceof Node) return cell;
  return make(at ? 'td' : 'th', typeof cell === 'number' ? three(cell) : cell, at ? {} : { scope: 'row' });
}
function table(heads, rows) {
  const out = make('table'), head = make('tr'), top = make('thead'), body = make('tbody');
  for (const text of heads) head.append(make('th', text, { scope: 'col' }));
  top.append(head);
  for (const cells of rows) {
    const tr = make('tr');
    tr.append(...cells.map(cellNode));
    body.append(tr);
  }
  out.append(top, body);
  const wide = make('div', null, { class: 'wide' });
  wide.append(out);
  return wide;
}

// Figures.
function draw(tag, attributes, text) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (known(text)) node.textContent = text;
  return node;
}
function ticksOf(low, high, n = 5) {
  const raw = (high - low) / n || 1, unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 5, 10].find(factor => factor * unit >= raw * .999);
  const first = Math.ceil(low / step), last = Math.floor(high / step + 1e-6);
  return Array.from({ length: last - first + 1 }, (_, at) => Number(((first + at) * step).toPrecision(6)));
}
const scaleOf = (low, high, from, to) => value => from + (value - low) / (high - low || 1) * (to - from);
// An empty figure with its axes. `x` and `y` are { low, high, title, ticks, text }.
function axes({ says, x, y, widest = 520, right = 15 }) {
  const [left, bottom, top] = [62, 44, 12], room = document.documentElement.clientWidth - 50;
  const width = Math.max(300, Math.min(widest, room)), height = Math.min(380, width);
  const X = scaleOf(x.low, x.high, left, width - right), Y = scaleOf(y.low, y.high, height - bottom, top);
  const svg = draw('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': says });
  const line = (x1, x2, y1, y2) => draw('line', { x1, x2, y1, y2, stroke: 'var(--line)' });
  const write = x.text || three;
  for (const tick of x.ticks || ticksOf(x.low, x.high)) svg.append(
    line(X(tick), X(tick), top, height - bottom),
    draw('text', { x: X(tick), y: height - bottom + 16, 'text-anchor': 'middle' }, write(tick)));
  for (const tick of y.ticks || ticksOf(y.low, y.high)) svg.append(
    line(left, width - right, Y(tick), Y(tick)),
    draw('text', { x: left - 6, y: Y(tick) + 4, 'text-anchor': 'end' }, three(tick)));
  svg.append(draw('text', { x: (left + width - right) / 2, y: height - 6, 'text-anchor': 'middle' }, x.title));
  const turned = `translate(13 ${(top + height - bottom) / 2}) rotate(-90)`;
  svg.append(draw('text', { transform: turned, 'text-anchor': 'middle' }, y.title || ''));
  return { svg, X, Y };
}
function point(x, y, says, attributes = {}) {
  const node = draw('circle', { cx: x, cy: y, r: 4, fill: 'var(--mark)', ...attributes });
  node.append(draw('title', {}, says));
  return node;
}
// Names beside points, but for those that would be written over another.
function namesOf(places) {
  const written = [], width = place => 7 * place.text.length;
  const meet = (a, b) => Math.abs(a.y - b.y) < 12 && a.x < b.x + width(b) && b.x < a.x + width(a);
  for (const place of places) if (!written.some(other => meet(place, other))) written.push(place);
  return written.map(({ x, y, text }) => draw('text', { x, y }, text));
}
// Points of two numbers in one unit, with the line where they are equal; those of which `named` is true have names.
function scatter(points, { says, xTitle, yTitle, named = () => false }) {
  const values = points.flatMap(p => [p.x, p.y]), edge = (Math.max(...values) - Math.min(...values)) * .05 || .1;
  const ends = { low: Math.min(...values) - edge, high: Math.max(...values) + edge };
  const { svg, X, Y } = axes({ says, x: { ...ends, title: xTitle }, y: { ...ends, title: yTitle }, right: 60 });
  const equal = { x1: X(ends.low), y1: Y(ends.low), x2: X(ends.high), y2: Y(ends.high) };
  svg.append(draw('line', { ...equal, stroke: 'var(--soft)', 'stroke-dasharray': '4 3' }));
  for (const p of points.filter(p => p.se)) svg.append(draw('line', {
    x1: X(Math.max(p.x - 2 * p.se, ends.low)), x2: X(Math.min(p.x + 2 * p.se, ends.high)), y1: Y(p.y), y2: Y(p.y),
    stroke: 'var(--base)', 'stroke-opacity': .6 }));
  for (const p of points)
    svg.append(point(X(p.x), Y(p.y), p.says, p.hollow ? { fill: 'var(--page)', stroke: 'var(--mark)' } : {}));
  svg.append(...namesOf(points.filter(named).map(p => ({ text: p.label, x: X(p.x) + 7, y: Y(p.y) - 5 }))));
  return svg;
}

// Conditions x genes, coloured by error: too high and too low in two colours.
function heatMap(rows, genes, limit) {
  const cut = (text, most) => text.length > most ? `${text.slice(0, most - 1)}…` : text;
  const room = texts => 10 + 7 * Math.max(...texts.map(text => text.length));
  const names = rows.map(row => cut(row.name, 27)), heads = genes.map(gene => cut(gene, 12));
  const [left, top, w, h] = [room(names), room(heads), 18, 14];
  const width = left + genes.length * w, height = top + rows.length * h;
  const says = 'Errors of genes in conditions; the numbers are in the tables of each condition';
  const svg = draw('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': says });
  heads.forEach((head, at) => svg.append(draw('text', {
    transform: `translate(${left + at * w + w / 2 + 4} ${top - 4}) rotate(-90)` }, head)));
  rows.forEach((row, i) => {
    svg.append(draw('text', { x: left - 5, y: top + i * h + h - 3, 'text-anchor': 'end' }, names[i]));
    row.errors.forEach((error, j) => {
      if (!known(error)) return;
      const colour = error > 0 ? 'var(--over)' : 'var(--under)';
      const rect = draw('rect', { x: left + j * w, y: top + i * h, width: w - 1, height: h - 1, fill: colour,
        'fill-opacity': Math.min(1, Math.abs(error) / limit).toFixed(2) });
      rect.append(draw('title', {}, `${genes[j]} in ${row.name}: ${three(error)}`));
      svg.append(rect);
    });
  });
  svg.style.minWidth = `${width}px`;
  svg.style.maxWidth = `${width}px`;
  return svg;
}

// Behind a row: its runs and conditions; its genes; the same conditions by another model.
const dialog = one('dialog'), heading = one('dialog h2'), about = one('dialog .body');
const VIEWS = ['condition', 'against', 'on'];
const closed = Object.fromEntries(['model', ...VIEWS].map(name => [name, '']));
function view(changes) {
  put(changes);
  showDialog();
}
function backTo(label) {
  const p = make('p');
  p.append(button(`Back to ${label}`, () => view({ ...closed, model: label })));
  return p;
}
function runsNode(runs) {
  const p = make('p', 'Runs: ');
  runs.forEach((run, at) => p.append(
    at ? ', ' : '', make('a', `notebook of seed ${run.seed}`, { href: `${run.at}/notebook.ipynb` }),
    ' (', make('a', 'configuration', { href: `${run.at}/run.json` }), ')'));
  return p;
}
const scoredBy = data => Object.keys(data.questions).filter(key => data.scores[key]);
const isLower = (data, key) => data.metrics[data.questions[key]].better === 'lower';
function bestFirst(data, key, label) {
  const values = data.scores[key][data.models.indexOf(label)], sign = isLower(data, key) ? 1 : -1;
  return data.conditions.map((_, at) => at).sort((a, b) =>
    (values[a] === null) - (values[b] === null) || sign * (values[a] - values[b]));
}
function conditionsNode(data, label, genes) {
  const keys = scoredBy(data), place = data.models.indexOf(label), strata = data.strata_names;
  const shown = new Set(genes ? genes.conditions.map(condition => condition.name) : []);
  const name = text => {
    const th = make('th', shown.has(text) ? null : text, { scope: 'row' });
    if (shown.has(text)) th.append(button(text, () => view({ condition: text })));
    return th;
  };
  const rows = bestFirst(data, keys[0], label).map(at => [name(data.conditions[at]),
    ...keys.map(key => data.scores[key][place][at]), ...strata.map(stratum => data.known[stratum][at])]);
  return table(['Condition', ...keys.map(key => `${QUESTIONS[key]} (${data.questions[key]})`), ...strata], rows);
}
function errorsNode(data, label, genes) {
  const order = bestFirst(data, scoredBy(data)[0], label).map(at => data.conditions[at]);
  const byName = new Map(genes.conditions.map(condition => [condition.name, condition]));
  const rows = order.filter(name => byName.has(name)).map(name => {
    const { gene, predicted, observed } = byName.get(name), place = new Map(gene.map((number, at) => [number, at]));
    return { name, errors: genes.shared.map(number => {
      const at = place.get(number);
      return at === undefined ? null : predicted[at] - observed[at];
    }) };
  });
  const sizes = rows.flatMap(row => row.errors).filter(known).map(Math.abs).sort((a, b) => a - b);
  const limit = sizes[Math.floor(.95 * (sizes.length - 1))] || 1, details = make('details', null, { class: 'errors' });
  const wide = make('div', null, { class: 'wide' });
  details.append(make('summary', 'Errors of genes, condition by condition'), make('p',
    `Genes with the largest effects over all conditions, the largest first; conditions as in the table above. ` +
    `Orange: predicted too high, blue: too low, in full colour from ${three(limit)} on.`, { class: 'soft' }), wide);
  details.addEventListener('toggle', () => {
    if (!wide.firstChild) wide.append(heatMap(rows, genes.shared.map(number => genes.genes[number]), limit));
  });
  return details;
}
function againstNode(data, label) {
  const others = data.models.filter(other => other !== label);
  if (!others.length) return make('p');
  const options = [['', 'another model'], ...others.map(other => [other, other])];
  const p = make('p');
  p.append(labelled('Condition by condition beside', choice(options, '', other => view({ against: other }))));
  return p;
}
function noGenes(data, label) {
  const runs = 'No genes are kept with these runs; `perturbench rescore` adds them where models were kept.';
  return make('p', data.runs[label] ? runs : 'No genes are kept with these scores.', { class: 'soft' });
}
function showModel(section, data, label, genes) {
  heading.textContent = `${label} on ${section.dataset.task}`;
  about.replaceChildren();
  if (TEXTS.has(label)) about.append(make('p', TEXTS.get(label)));
  const flags = all('.flags li', section).filter(li => li.firstChild.textContent === label);
  if (flags.length) {
    const list = make('ul');
    list.append(...flags.map(li => li.cloneNode(true)));
    about.append(list);
  }
  if (data.runs[label]) about.append(runsNode(data.runs[label]));
  if (!data.models.includes(label) || !scoredBy(data).length) return;
  about.append(againstNode(data, label));
  const first = data.questions[scoredBy(data)[0]], opens = genes ? '; a name opens its genes' : '';
  about.append(make('p', `Conditions, the best by ${first} first; means over seeds${opens}.`),
    conditionsNode(data, label, genes), genes ? errorsNode(data, label, genes) : noGenes(data, label));
  if (genes && genes.left_out) about.append(make('p', `Genes of ${genes.left_out} conditions with smaller effects are `
    + 'not on this page; `genes.parquet` of each run has them.', { class: 'soft' }));
}

// The genes of a condition.
const SHOWN = 10;
function genesOf(genes, condition) {
  const drawn = new Set(genes.drawn);
  return condition.gene.map((number, at) => ({ name: genes.genes[number], drawn: drawn.has(number),
    observed: condition.observed[at], se: condition.se[at], predicted: condition.predicted[at],
    error: condition.predicted[at] - condition.observed[at] }));
}
function genesTable(title, some) {
  const part = make('div'), measured = gene => three(gene.observed) + (known(gene.se) ? ` ± ${three(gene.se)}` : '');
  const rows = some.map(gene => [gene.name, measured(gene), gene.predicted, gene.error]);
  part.append(make('h3', title), table(['Gene', 'Observed', 'Predicted', 'Error'], rows));
  return part;
}
function showGenes(section, label, genes, name) {
  const condition = genes.conditions.find(other => other.name === name);
  heading.textContent = `${name}: ${label} on ${section.dataset.task}`;
  about.replaceChildren(backTo(label));
  if (!condition) return about.append(make('p', 'The genes of this condition are not on this page.'));
  const found = genesOf(genes, condition), by = key => [...found].sort((a, b) => Math.abs(b[key]) - Math.abs(a[key]));
  const large = by('observed').slice(0, 2 * SHOWN).filter(gene => Math.abs(gene.observed) > 2 * (gene.se || 0));
  const missed = gene => Math.abs(gene.error / gene.observed);
  const best = large.filter(gene => missed(gene) < 1).sort((a, b) => missed(a) - missed(b)).slice(0, SHOWN);
  const named = new Set([...by('observed').slice(0, 5), ...by('error').slice(0, 5)].map(gene => gene.name));
  about.append(make('p', `An effect is the change of mean log expression against controls. Over all genes the error ` +
    `(root mean square) is ${three(condition.rmse)}, and ${three(condition.doubled)} with twice the predicted ` +
    'effect. Here are the genes with the largest effects and errors, and (hollow) some others by chance; bars are ' +
    'two standard errors of the measurement.'));
  const points = found.map(gene => ({ x: gene.observed, y: gene.predicted, se: gene.se, hollow: gene.drawn,
    label: gene.name, says: `${gene.name}: observed ${three(gene.observed)}, predicted ${three(gene.predicted)}` }));
  const says = `Predicted against observed effects in ${name}; numbers are in the tables below`;
  const figure = make('figure'), tables = make('div', null, { class: 'side' });
  figure.append(scatter(points, { says, xTitle: 'observed', yTitle: 'predicted', named: p => named.has(p.label) }));
  tables.append(genesTable('Largest effects', by('observed').slice(0, SHOWN)),
    genesTable('Largest errors', by('error').slice(0, SHOWN)));
  if (best.length) tables.append(genesTable('Best of the large effects', best));
  about.append(figure, tables);
}

// Two models over the conditions of a task.
function pointsOf(data, key, label, other) {
  const [x, y] = [other, label].map(name => data.scores[key][data.models.indexOf(name)]);
  return data.conditions.map((name, at) => ({ label: name, x: x[at], y: y[at],
    says: `${name}: ${label} ${three(y[at])}, ${other} ${three(x[at])}` })).filter(p => known(p.x) && known(p.y));
}
function showPair(section, data, label, other) {
  const keys = scoredBy(data), key = keys.includes(get('on')) ? get('on') : keys[0];
  heading.textContent = `${label} beside ${other} on ${section.dataset.task}`;
  const tools = make('p'), tasks = sections.map(part => [part.dataset.task, part.dataset.task]);
  tools.append(labelled('Question', choice(keys.map(name => [name, QUESTIONS[name]]), key, on => view({ on }))));
  if (tasks.length > 1) tools.append(' ', labelled('Task', choice(tasks, section.dataset.task, name => {
    view({ task: name });
    showAll();
  })));
  about.replaceChildren(backTo(label), tools);
  const both = [label, other].every(name => data.models.includes(name));
  const points = key && both ? pointsOf(data, key, label, other) : [];
  if (!points.length) return about.append(make('p', 'They share no condition.'));
  const metric = data.questions[key], sign = isLower(data, key) ? 1 : -1, gain = p => sign * (p.x - p.y);
  const count = wanted => points.filter(p => Math.sign(gain(p)) === wanted).length;
  const equal = count(0) ? `, ${count(0)} ties` : '';
  about.append(make('p', `${label} is better in ${count(1)} of ${points.length} conditions, ${other} in ${count(-1)}` +
    `${equal} (${metric}, ${data.metrics[metric].better} is better; means over seeds).`));
  const far = new Set([...points].sort((a, b) => Math.abs(gain(b)) - Math.abs(gain(a))).slice(0, 4).map(p => p.label));
  const figure = make('figure'), says = `${metric} of ${label} against ${other}; numbers are in the table below`;
  figure.append(scatter(points, { says, xTitle: other, yTitle: label, named: p => far.has(p.label) }));
  const rows = [...points].sort((a, b) => gain(b) - gain(a)).map(p => [p.label, p.y, p.x, gain(p)]);
  about.append(figure, table(['Condition', label, other, 'Better by'], rows));
}
async function fillDialog(section, label) {
  const data = await load(section);
  if (get('against')) return showPair(section, data, label, get('against'));
  const genes = await loadGenes(section, data, label);
  if (get('condition') && genes) return showGenes(section, label, genes, get('condition'));
  showModel(section, data, label, genes);
}
async function showDialog() {
  const section = sections.find(part => part.dataset.task === get('task')) || sections[0], label = get('model');
  if (!section || !label) return;
  await fillDialog(section, label).catch(error => {
    heading.textContent = label;
    about.replaceChildren(make('p', error.message));
  });
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}
dialog.addEventListener('close', () => put(closed));
for (const section of sections) for (const th of all('.board tbody th', section)) {
  const label = th.parentNode.dataset.m;
  const node = button('', () => view({ ...closed, task: section.dataset.task, model: label }));
  node.append(...label.split(/(?<=_)/).flatMap(part => [make('wbr'), part]));
  th.firstChild.replaceWith(node);
}
// Who wins against whom, row by row and in the same order column by column.
const players = all('.heat tbody th').map(th => th.textContent);
all('.heat tbody tr').forEach((row, i) => all('td', row).forEach((cell, j) => {
  const share = cell.textContent;
  if (!share) return;
  const node = button(share, () => view({ ...closed, model: players[i], against: players[j] }));
  node.setAttribute('aria-label', `${players[i]} wins ${share} % against ${players[j]}`);
  cell.style.setProperty('--h', share / 2);
  cell.replaceChildren(node);
}));

// Lists of metrics and pairs, filled when they are opened.
function onOpen(details, fill) {
  details.addEventListener('toggle', () => { if (details.open) fill(); });
}
async function fillFamily(section, family) {
  const data = await load(section).catch(() => null);
  if (!data || one('table', family)) return;
  const names = Object.keys(data.metrics).filter(name => data.metrics[name].kind === family.dataset.kind);
  const value = (name, label) => data.metrics[name].rows[label] ? range(data.metrics[name].rows[label]) : '';
  const rows = data.models.map(label => [label, ...names.map(name => value(name, label))]);
  one('p', family).replaceWith(table(['Model', ...names], rows));
}
async function fillPairs(section, pairs) {
  const data = await load(section).catch(() => null);
  if (!data || one('.all', pairs)) return;
  for (const [title, sentences] of Object.entries(data.pairs)) {
    const more = make('details', null, { class: 'all' }), list = make('ul');
    list.append(...sentences.map(text => make('li', text)));
    more.append(make('summary', title), list);
    pairs.append(more);
  }
}
for (const section of sections) {
  for (const family of all('.family', section)) onOpen(family, () => fillFamily(section, family));
  for (const pairs of all('.pairs', section)) onOpen(pairs, () => fillPairs(section, pairs));
}

// Copying what is shown.
const quoted = text => `"${text.replaceAll('"', '""')}"`;
const inMarkdown = row => `| ${row.map(text => text.replaceAll('|', '\\|')).join(' | ')} |`;
const escaped = text => text.replace(/[&%$#_{}]/g, '\\$&').replaceAll('–', '--');
const inLatex = row => `${row.map(escaped).join(' & ')} \\\\`;
const FORMS = {
  csv: rows => rows.map(row => row.map(quoted).join(',')).join('\n'),
  markdown: rows => [rows[0], rows[0].map(() => '---'), ...rows.slice(1)].map(inMarkdown).join('\n'),
  latex: rows => [`\\begin{tabular}{l${'r'.repeat(rows[0].length - 1)}}`, ...rows.map(inLatex),
    '\\end{tabular}'].join('\n'),
};
function textOf(cell, key) {
  if (key === 'model') return cell.parentNode.dataset.m;
  const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), texts = [];
  while (walker.nextNode()) texts.push(walker.currentNode.textContent.trim());
  return texts.filter(Boolean).join('; ');
}
function shownText(section) {
  const keys = KEYS.filter(key => !listed('without').includes(key));
  const rows = rowsOf(section).filter(row => !row.classList.contains('gone'));
  return [keys.map(key => QUESTIONS[key] || key), ...rows.map(row => keys.map(key => textOf(cellOf(row, key), key)))];
}
async function copy(section, form) {
  const text = FORMS[form](shownText(section)), said = one('[role=status]', section);
  window.perturbenchCopied = text;
  const area = make('textarea', text, { rows: 6, cols: 60, 'aria-label': 'The table as text' });
  await navigator.clipboard.writeText(text).then(() => { said.textContent = 'copied'; },
    () => said.replaceChildren(area));
}
for (const section of sections) for (const node of all('[data-copy]', section))
  node.addEventListener('click', () => copy(section, node.dataset.copy));

// Score against cost.
const LOWEST = -1, QUICKEST = .01;
const COST_UNITS = { seconds: 'seconds', memory: 'MB of memory', parameters: 'parameters' };
function costsOf(section, key, by) {
  const points = rowsOf(section).map(row => ({ label: row.dataset.m, kind: row.classList[0],
    cost: valueOf(row, by), score: valueOf(row, key) }));
  return points.filter(p => known(p.cost) && known(p.score)).map(p => ({ ...p, cost: Math.max(-p.cost, QUICKEST) }));
}
const beats = (p, q) => p.cost <= q.cost && p.score >= q.score && (p.cost < q.cost || p.score > q.score);
function plotCosts(section) {
  const [key, by] = all('.cost select', section).map(select => select.value), unit = COST_UNITS[by];
  const points = costsOf(section, key, by), figure = one('.cost figure', section);
  if (!points.length) return figure.replaceChildren(make('p', 'No costs are known.'));
  const logs = points.map(p => Math.log10(p.cost)), scores = points.map(p => p.score);
  const x0 = Math.floor(Math.min(...logs)), x1 = Math.max(Math.ceil(Math.max(...logs)), x0 + 1);
  const y0 = Math.max(Math.min(...scores, 0), LOWEST), y1 = 1.1 * Math.max(...scores, y0 + .1);
  const decades = Array.from({ length: x1 - x0 + 1 }, (_, at) => x0 + at);
  const { svg, X, Y } = axes({
    says: `${QUESTIONS[key]}: score against ${unit}; the same numbers are in the table`, widest: 640, right: 120,
    x: { low: x0, high: x1, title: unit, ticks: decades, text: tick => three(10 ** tick) },
    y: { low: y0, high: y1, title: `score, ${QUESTIONS[key]}` } });
  const at = p => [X(Math.log10(p.cost)), Y(Math.max(p.score, y0))];
  const front = points.filter(p => !points.some(q => beats(q, p))).sort((a, b) => a.cost - b.cost);
  svg.append(draw('polyline', { points: front.map(p => at(p).join()).join(' '), fill: 'none', stroke: 'var(--soft)',
    'stroke-dasharray': '4 3' }));
  for (const p of points) {
    const fill = p.kind === 'baseline' ? 'var(--base)' : 'var(--mark)', [x, y] = at(p);
    svg.append(point(x, y, `${p.label}: ${three(p.score)} for ${three(p.cost)} ${unit}`, { fill, r: 5 }));
    if (front.includes(p)) svg.append(draw('text', { x: x + 8, y: y - 6 }, p.label));
  }
  figure.replaceChildren(svg);
}
function canBeDrawn(section, key) {
  return rowsOf(section).some(row => !cellOf(row, key).classList.contains('unfit') && known(valueOf(row, key)));
}
// Two questions: what is gained in one and lost in the other.
const isAhead = (p, q) => p.x >= q.x && p.y >= q.y && (p.x > q.x || p.y > q.y);
function tradesOf(section, across, up) {
  const edge = value => Math.max(value, LOWEST);
  return rowsOf(section).map(row => ({ label: row.dataset.m, hollow: row.classList[0] === 'baseline',
    x: valueOf(row, across), y: valueOf(row, up) })).filter(p => known(p.x) && known(p.y))
    .map(p => ({ ...p, x: edge(p.x), y: edge(p.y), says: `${p.label}: ${three(p.x)}, ${three(p.y)}` }));
}
function plotTrade(section) {
  const [across, up] = all('.trade select', section).map(select => select.value);
  const points = tradesOf(section, across, up), [xTitle, yTitle] = [QUESTIONS[across], QUESTIONS[up]];
  const says = `Scores: ${yTitle} against ${xTitle}; the same numbers are in the table`;
  const named = p => !points.some(q => isAhead(q, p));
  one('.trade figure', section).replaceChildren(points.length ? scatter(points, { says, xTitle, yTitle, named })
    : make('p', 'No model has both scores.'));
}

// Figures of scores are drawn when they are opened, and anew when other questions are chosen.
function fillFigure(section, details, starts, fewest, plot) {
  const keys = Object.keys(QUESTIONS).filter(key => canBeDrawn(section, key));
  if (keys.length < fewest) return details.remove();
  for (const [select, start] of starts) {
    select.append(...keys.map(key => make('option', QUESTIONS[key], { value: key })));
    select.value = keys[start];
  }
  for (const ask of all('select', details)) ask.addEventListener('change', () => plot(section));
  onOpen(details, () => plot(section));
}
for (const section of sections) {
  const cost = one('.cost', section), trade = one('.trade', section), [across, up] = all('select', trade);
  fillFigure(section, cost, [[one('.score', cost), 0]], 1, plotCosts);
  fillFigure(section, trade, [[across, 0], [up, 1]], 2, plotTrade);
}

// A table that is shown as cards is a table still.
const ROLES = { thead: 'rowgroup', tbody: 'rowgroup', tr: 'row', td: 'cell' };
for (const node of all('.board')) node.setAttribute('role', 'table');
for (const [tag, role] of Object.entries(ROLES))
  for (const node of all(`.board ${tag}`)) node.setAttribute('role', role);
for (const th of all('.board th')) th.setAttribute('role', th.scope === 'row' ? 'rowheader' : 'columnheader');

showAll();
sortAll();
if (get('stratum')) showStratum();
showDialog();
})();
