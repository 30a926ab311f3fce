// The head of the page: who is ahead, who beats whom, scores by type, charts and all tables.

const label = column => data.labels[column] ?? column;
const nameOf = method => roleOf[method] ?? method;
const shortName = method => nameOf(method).replace(/ \(.*/, '');         // "do nothing"
const headOf = column => label(column) == column ? column : `${column}*`;    // explained below

function summary() {
  return data.summaries.find(part => part.name == (subset || 'all')) ?? data.summaries[0];
}

// Methods, the best first, then the source and the reference.
function namesByRank() {
  const order = summary().ranking.map(entry => entry.method);
  return [...order.filter(name => !roleOf[name]), ...order.filter(name => roleOf[name])];
}

// "7.21 [6.80, 7.60]", or "-"
function withInterval([mean, low, high], digits = 2, sign = '') {
  if (mean == null) return '-';
  const show = value => (value > 0 ? sign : '') + value.toFixed(digits);
  return low == null ? show(mean) : `${show(mean)} [${show(low)}, ${show(high)}]`;
}

// ------------------------------------------------------------------------------ a table

// A click on a head sorts by it: numbers by size, the largest first, and texts by their letters.
function makeSortable(table) {
  const heads = [...table.rows[0].cells];
  heads.forEach((head, column) => {
    const text = head.textContent;
    if (!text || head.firstElementChild) return;     // a rank, or a chart's axis
    head.textContent = '';
    const button = make('button', text, head);
    let upward = true;
    button.onclick = () => {
      upward = !upward;
      const rows = [...table.rows].slice(1);
      const value = row => row.cells[column].textContent;
      const isNumber = rows.some(row => Number.isFinite(parseFloat(value(row))));
      rows.sort((a, b) => {
        if (!isNumber) return (upward ? -1 : 1) * value(a).localeCompare(value(b));
        const [x, y] = [a, b].map(row => parseFloat(value(row)));
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return upward ? x - y : y - x;
      });
      table.rows[0].parentNode.append(...rows);
      for (const other of heads) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', upward ? 'ascending' : 'descending');
    };
  });
}

function addCsvButton(table, name, parent) {
  const cells = row => [...row.cells].map(cell => cell.textContent);
  make('button', 'CSV', parent).onclick =
    () => download(`${name}.csv`, csv([...table.rows].map(cells)), 'text/csv');
}

// ------------------------------------------------------------------------------ the ranking

function drawRanking() {
  const { ranking, pairs, verdict, n } = summary();
  const table = byId('ranking');
  const judged = data.columns.filter(column => column != data.main);
  const rivals = ranking.filter(entry => !roleOf[entry.method]);
  const others = ranking.filter(entry => roleOf[entry.method]);
  const best = rivals[0];
  byId('verdict').textContent = verdict;
  table.replaceChildren();
  const head = make('tr', null, table);
  for (const text of ['', 'method', label(data.main), '', 'against the first',
                      ...judged.map(headOf), 'scored', 'failed']) make('th', text, head);
  drawScale(head.cells[3]);
  const top = column => Math.max(...rivals.map(entry => entry.scores[column][0] ?? -Infinity));
  [...rivals, ...others].forEach((entry, place) => {
    const isMethod = !roleOf[entry.method];
    const line = make('tr', null, table, isMethod ? '' : 'role');
    const cell = column => {
      const value = entry.scores[column];
      const digits = data.unit.includes(column) ? 3 : 2;
      const isTop = isMethod && value[0] != null && value[0] == top(column);
      const shown = column == data.main ? value : value.slice(0, 1);     // the rest: on hovering
      const element = make('td', withInterval(shown, digits), line, isTop ? 'best' : '');
      element.title = withInterval(value, digits);
    };
    make('td', isMethod ? `${place + 1}` : '', line);
    make('td', nameOf(entry.method), line, entry == best ? 'name best' : 'name');
    cell(data.main);
    drawBar(make('td', null, line), entry.scores[data.main]);
    addDifference(make('td', null, line), entry, best, pairs);
    judged.forEach(cell);
    make('td', entry.scored, line);
    make('td', entry.failed, line, entry.failed ? 'bad' : '');
  });
  makeSortable(table);
  const starred = data.columns.filter(column => label(column) != column).map(label);
  const stars = starred.length ? ` * ${starred.join('; ')}.` : '';
  byId('ranking-note').textContent = `${n} samples. Brackets: 95 % intervals. "Against the ` +
    'first": the difference over the same samples; it is real where its interval leaves out ' +
    `zero, without a correction for the number of methods.${stars}`;
}

const topOfScale = data.unit.includes(data.main) ? 1 : 10;
const scale = value => 8 + 144 * Math.min(Math.max(value / topOfScale, 0), 1);

function drawScale(cell) {
  const chart = svg('svg', { width: 160, height: 16, role: 'img',
                             'aria-label': `bars from 0 to ${topOfScale}` }, cell);
  axis(chart, 14, scale, topOfScale, 2);
}

function drawBar(cell, value) {
  const described = { role: 'img', 'aria-label': withInterval(value) };
  const chart = svg('svg', { width: 160, height: 14, ...described }, cell);
  bar(chart, 1, scale, value);
}

function addDifference(cell, entry, best, pairs) {
  if (!best || entry == best || roleOf[entry.method]) return;
  const found = pairs.find(each => [each.a, each.b].includes(best.method)
    && [each.a, each.b].includes(entry.method));
  const sign = found.a == entry.method ? 1 : -1;
  const [mean, low, high] = found.difference;
  const turned = sign == 1 ? [mean, low, high] : [mean, high, low].map(x => x == null ? x : -x);
  const words = { true: 'real', false: 'not settled', null: 'too few samples' }[found.real];
  cell.textContent = `${withInterval(turned, 2, '+')} ${words}`;
  if (found.real) cell.className = turned[0] < 0 ? 'worse' : 'real';
}

function drawSubsets() {
  const parts = data.summaries.length > 1 ? data.summaries : [];
  byId('subsets').replaceChildren(...parts.map(part => {
    const name = part.name == 'all' ? '' : part.name;
    const button = make('button', `${part.name} (${part.n})`);
    button.setAttribute('aria-pressed', name == subset);
    button.onclick = () => {
      subset = name;
      drawHead();
      drawSamples();
    };
    return button;
  }));
}

// ------------------------------------------------------------------------------ who beats whom

// On how many of these samples a is better than b, by the chosen score; n: those that both have.
function duel(a, b, samples) {
  const column = byId('column').value;
  const found = { won: 0, lost: 0, equal: 0, n: 0 };
  for (const sample of samples) {
    const [x, y] = [a, b].map(name => scoreOf(sample, name, column));
    if (x == null || y == null) continue;
    found.n += 1;
    found[x > y ? 'won' : x < y ? 'lost' : 'equal'] += 1;
  }
  return found;
}

function drawPairs() {
  const column = byId('column').value;
  const sorted = namesByRank();
  const samples = inSubset();
  const table = byId('pairs');
  byId('pairs-title').textContent = `Who beats whom, by ${label(column)}`;
  table.replaceChildren();
  const head = make('tr', null, table);
  for (const text of ['the line beats', ...sorted.map(shortName)]) make('th', text, head);
  for (const a of sorted) {
    const line = make('tr', null, table);
    make('td', shortName(a), line);
    for (const b of sorted) {
      const cell = make('td', null, line);
      if (a == b) continue;
      const { won, n } = duel(a, b, samples);
      const button = make('button', `${won} of ${n}`, cell);
      button.title = `${a} beats ${b} on ${won} of ${n} samples: click to see these`;
      button.setAttribute('aria-pressed', pair?.[0] == a && pair?.[1] == b);
      if (won > n / 2) button.className = 'best';
      button.onclick = () => {
        pair = pair?.[0] == a && pair?.[1] == b ? null : [a, b];
        drawPairs();
        drawSamples();
      };
    }
  }
  drawPair(samples);
}

// The chosen pair in words, and wins and losses by type as bars to both sides.
function drawPair(samples) {
  const place = byId('pair');
  place.replaceChildren();
  if (!pair || !pair.every(name => names.includes(name))) return;
  const [a, b] = pair;
  const { won, lost, equal, n } = duel(a, b, samples);
  make('p', `${nameOf(a)} beats ${nameOf(b)} on ${won} of ${n}, loses on ${lost}, ` +
    `${equal} are equal. Listed below: the ${won}.`, place);
  const table = make('table', null, make('div', null, place, 'scroll'));
  const head = make('tr', null, table);
  for (const text of ['type', 'wins', 'losses', 'equal']) make('th', text, head);
  for (const type of new Set(samples.map(sample => sample.type))) {
    const found = duel(a, b, samples.filter(sample => sample.type == type));
    const line = make('tr', null, table);
    for (const text of [type, found.won, found.lost, found.equal]) make('td', text, line);
  }
  makeSortable(table);
}

// ------------------------------------------------------------------------------ by type, charts

function drawTypes() {
  const table = byId('types');
  byId('types-title').textContent = `${label(data.main)} by type`;
  const kinds = new Set(inSubset().map(sample => sample.type));
  table.replaceChildren();
  const head = make('tr', null, table);
  const sorted = namesByRank();
  for (const text of ['type', ...sorted.map(shortName)]) make('th', text, head);
  for (const [type, values] of Object.entries(data.types)) {
    if (!kinds.has(type)) continue;
    const line = make('tr', null, table);
    const top = Math.max(...rivals.map(name => values[name][1] ?? -Infinity));
    make('td', type, line);
    for (const name of sorted) {
      const [n, ...value] = values[name];
      const cell = make('td', value[0] == null ? '-' : value[0].toFixed(2), line);
      cell.title = `${withInterval(value)}, N = ${n}`;
      if (!roleOf[name] && value[0] == top) cell.className = 'best';
      if (value[0] != null) {
        cell.style.setProperty('--part', Math.min(1, value[0] / topOfScale).toFixed(2));
      }
    }
  }
  makeSortable(table);
}

function drawCharts() {
  for (const { column, points, correlation } of data.people) {
    const part = make('section', null, byId('charts'));
    make('h2', `Judge and people: ${label(column)}`, part);
    const rho = withInterval(correlation);
    make('p', `Spearman ${rho}, N = ${points.length}. Click a point to see it.`, part);
    const dots = points.map(({ id, method, people, judge }) =>
      ({ x: people, y: judge, text: `${id}, ${method}`, id }));
    const description = `judge against people, ${label(column)}`;
    part.append(scatter(dots, ['people', 'judge'], description, dot => goTo(dot.id)));
  }
  if (data.study) {
    const part = make('section', null, byId('charts'));
    make('h2', 'User study: how often people prefer one to another', part);
    make('p', data.study.words, part);
    for (const criterion of new Set(data.study.rates.map(rate => rate.criterion))) {
      make('h3', criterion, part);
      const rates = data.study.rates.filter(rate => rate.criterion == criterion);
      const percent = values => values.map(x => x == null ? null : 100 * x);
      const rows = rates.map(({ a, b, rate }) => [`${a} over ${b}`, percent(rate)]);
      part.append(barChart(rows, 100, `win rates in per cent, ${criterion}`));
    }
  }
}

// A block is "## a heading", a text, or a table: lists of cells. Made when they are opened.
function fillTables(parent) {
  data.blocks.forEach((block, k) => {
    if (typeof block == 'string') {
      if (block.startsWith('## ')) make('h3', block.slice(3), parent);
      else make('p', block, parent).style.whiteSpace = 'pre-line';
      return;
    }
    const table = make('table', null, make('div', null, parent, 'scroll'));
    block.forEach((cells, place) => {
      const line = make('tr', null, table);
      for (const text of cells) make(place ? 'td' : 'th', text, line);
    });
    makeSortable(table);
    addCsvButton(table, `table-${k}`, parent);
  });
}

// ------------------------------------------------------------------------------ start

function drawHead() {
  drawSubsets();
  drawRanking();
  drawPairs();
  drawTypes();
}

function readAndDraw() {
  const id = readAddress();
  drawHead();
  drawSamples(data.samples.find(sample => sample.id == id));
  if (id) goTo(id);
}

function start() {
  const title = byId('title');
  const many = (n, word) => `${n} ${word}${n == 1 ? '' : 's'}`;
  title.textContent = 'RVE-Bench ';
  make('small', data.title, title);
  const spent = data.spent ? `$${data.spent.toFixed(2)} spent` : '';
  const about = [`judged by ${data.judge}`, data.date, many(data.samples.length, 'sample'),
                 many(rivals.length, 'method'), spent];
  byId('about').textContent = about.filter(text => text).join(' · ');
  startSamples();
  startCloseup();
  drawCharts();
  byId('tables').ontoggle = event => {
    event.target.ontoggle = null;
    fillTables(event.target);
  };
  addEventListener('hashchange', readAndDraw);
  readAndDraw();
}

start();
