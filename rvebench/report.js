// The head of the page: who is ahead, who beats whom, scores by type, study and all tables.

const nameOf = method => roleOf[method] ?? method;
const shortName = method => nameOf(method).replace(/ \(.*/, '');         // "do nothing"
const topOfScale = data.unit.includes(data.main) ? 1 : 10;

// The scores of all samples, or of the chosen subset: of scores.summarise.
const part = () => data.parts.find(each => each.name == (subset || 'all')) ?? data.parts[0];

// Methods, the best first, then the source and the reference.
function namesByRank() {
  const { ranking } = part();
  return [...ranking.filter(name => !roleOf[name]), ...ranking.filter(name => roleOf[name])];
}

// "7.21 [6.80, 7.60]", or "-"
function withInterval([mean, low, high], digits = 2, sign = '') {
  if (mean == null) return '-';
  const show = value => (value > 0 ? sign : '') + value.toFixed(digits);
  return low == null ? show(mean) : `${show(mean)} [${show(low)}, ${show(high)}]`;
}

// ------------------------------------------------------------------------------ a table

// Empty a table of the page, and give it a head; returns the head's cells.
function beginTable(table, texts) {
  table.replaceChildren();
  return addLine(table, texts, 'th');
}

// ------------------------------------------------------------------------------ the ranking

function drawRanking() {
  const { groups, n, verdict } = part();
  const table = byId('ranking');
  const order = namesByRank();
  const judged = data.columns.filter(column => column != data.main);
  byId('verdict').textContent = verdict;
  const head = beginTable(table, ['', 'method', data.main, '', 'against the first', ...judged,
                                  'scored', 'failed']);
  axis(smallChart(`bars from 0 to ${topOfScale}`, 16, head[3]), 14, scale, topOfScale, 2);
  const top = column =>
    Math.max(...rivals.map(name => groups[name].all.scores[column][0] ?? -Infinity));

  order.forEach((name, place) => {
    const { scored, failed, scores } = groups[name].all;
    const isRival = !roleOf[name];
    const line = make('tr', null, table, isRival ? '' : 'role');
    const addScore = column => {
      const value = scores[column];
      const digits = data.unit.includes(column) ? 3 : 2;
      const shown = column == data.main ? value : value.slice(0, 1);     // the rest: on hovering
      const isTop = isRival && value[0] == top(column);
      const cell = make('td', withInterval(shown, digits), line, isTop ? 'best' : '');
      cell.title = withInterval(value, digits);
    };
    make('td', isRival ? place + 1 : '', line);
    make('td', nameOf(name), line, isRival && place == 0 ? 'name best' : 'name');
    addScore(data.main);
    const chart = smallChart(withInterval(scores[data.main]), 14, make('td', null, line));
    bar(chart, 1, scale, scores[data.main]);
    const difference = make('td', null, line);
    if (isRival && place > 0) showDifference(difference, name, order[0]);
    judged.forEach(addScore);
    make('td', scored, line);
    make('td', failed, line, failed ? 'bad' : '');
  });
  byId('ranking-note').textContent = `${n} samples. Brackets: 95 % intervals. "Against the ` +
    'first": the difference over the same samples; it is real where its interval leaves out ' +
    'zero, without a correction for the number of methods.';
}

const scale = value => 8 + 144 * Math.min(Math.max(value / topOfScale, 0), 1);

function smallChart(description, height, parent) {
  return svg('svg', { width: 160, height, role: 'img', 'aria-label': description }, parent);
}

function showDifference(cell, name, best) {
  const pair = part().pairs.find(({ a, b }) => a == name && b == best || a == best && b == name);
  const gain = pair.differences[data.main];
  const [mean, low, high] = gain;
  const turned = pair.a == name ? gain : [mean, high, low].map(x => x == null ? x : -x);
  const isReal = low > 0 || high < 0;
  const words = low == null ? 'too few samples' : isReal ? 'real' : 'not settled';
  cell.textContent = `${withInterval(turned, 2, '+')} ${words}`;
  if (isReal) cell.className = turned[0] < 0 ? 'worse' : 'real';
}

function drawSubsets() {
  const parts = data.parts.length > 1 ? data.parts : [];
  byId('subsets').replaceChildren(...parts.map(({ name, n }) => {
    const button = make('button', `${name} (${n})`);
    button.setAttribute('aria-pressed', name == (subset || 'all'));
    button.onclick = () => {
      subset = name == 'all' ? '' : name;
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
  const sorted = namesByRank();
  const samples = inSubset();
  const table = byId('pairs');
  byId('pairs-title').textContent = `Who beats whom, by ${byId('column').value}`;
  beginTable(table, ['the line beats', ...sorted.map(shortName)]);
  for (const a of sorted) {
    const line = addLine(table, [shortName(a), ...sorted.map(() => '')]);
    sorted.forEach((b, k) => { if (a != b) addDuel(line[k + 1], a, b, samples); });
  }
  drawPair(samples);
}

function addDuel(cell, a, b, samples) {
  const { won, n } = duel(a, b, samples);
  const isChosen = pair?.[0] == a && pair?.[1] == b;
  const button = make('button', `${won} of ${n}`, cell, won > n / 2 ? 'best' : '');
  button.title = `${a} beats ${b} on ${won} of ${n} samples: click to see these`;
  button.setAttribute('aria-pressed', isChosen);
  button.onclick = () => choosePair(isChosen ? null : [a, b]);
}

function choosePair(names) {
  pair = names;
  drawPairs();
  drawSamples();
}

// The chosen pair in words.
function drawPair(samples) {
  const place = byId('pair');
  place.replaceChildren();
  if (!pair || !pair.every(name => names.includes(name))) return;
  const [a, b] = pair;
  const { won, lost, equal, n } = duel(a, b, samples);
  make('p', `${nameOf(a)} beats ${nameOf(b)} on ${won} of ${n}, loses on ${lost}, ` +
    `${equal} are equal. Listed below: the ${won}.`, place);
}

// ------------------------------------------------------------------------------ by type, study

function drawTypes() {
  const table = byId('types');
  const { groups } = part();
  const sorted = namesByRank();
  byId('types-title').textContent = `${data.main} by type`;
  beginTable(table, ['type', ...sorted.map(shortName)]);
  const mean = (name, type) => groups[name][type].scores[data.main][0];
  for (const type of Object.keys(groups[sorted[0]]).filter(each => each != 'all')) {
    const line = make('tr', null, table);
    const top = Math.max(...rivals.map(name => mean(name, type) ?? -Infinity));
    make('td', type, line);
    for (const name of sorted) {
      const value = mean(name, type);
      const isTop = !roleOf[name] && value == top;
      const cell = make('td', value?.toFixed(2) ?? '-', line, isTop ? 'best' : '');
      const { n, scores } = groups[name][type];
      cell.title = `${withInterval(scores[data.main])}, N = ${n[data.main]}`;
      if (value == null) continue;
      cell.style.setProperty('--part', Math.min(1, value / topOfScale).toFixed(2));
    }
  }
}

function drawStudy() {
  if (!data.study) return;
  const part = byId('study');
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

// A block is "## a heading", a text, or a table: lists of cells. Made when they are opened.
function fillTables(parent) {
  for (const block of data.blocks) {
    if (typeof block != 'string') {
      const table = addTable(parent);
      block.forEach((cells, place) => addLine(table, cells, place ? 'td' : 'th'));
        } else if (block.startsWith('## ')) {
      make('h3', block.slice(3), parent);
    } else {
      make('p', block, parent).style.whiteSpace = 'pre-line';
    }
  }
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
  const about = [`judged by ${data.judge}`, data.date, many(data.samples.length, 'sample'),
                 many(rivals.length, 'method')];
  byId('about').textContent = about.filter(text => text).join(' · ');
  startSamples();
  drawStudy();
  byId('tables').ontoggle = event => {
    event.target.ontoggle = null;
    fillTables(event.target);
  };
  addEventListener('hashchange', readAndDraw);
  readAndDraw();
}

start();
