// What came out of each stage of curation: counts, threshold, clusters, triplets, rejections.

const parts = byId('parts');
const cards = lazily(
  card => { card.player = addVideos(card.item.videos, card.item.instruction, card.firstChild); },
  card => { card.player.end(); card.firstChild.replaceChildren(); });
const count = n => n.toLocaleString('en');

function addRows(title, rows) {
  make('h2', title, parts);
  const table = addTable(parts);
  const isNumber = value => typeof value == 'number';
  rows.forEach((row, place) => {
    const texts = row.map(value => isNumber(value) ? count(value) : value);
    const cells = addLine(table, texts, place ? 'td' : 'th');
    cells.forEach((cell, k) => cell.classList.toggle('text', !isNumber(row[k])));
  });
}

function addManifest({ name, n, types }) {
  make('h2', `${name}: ${count(n)}`, parts);
  const rows = Object.entries(types).map(([type, some]) => [type, [some, null, null]]);
  const most = Math.max(...Object.values(types));
  parts.append(barChart(rows, most, `triplets of each type in ${name}`));
}

// The cosines within windows; bars as the square roots of counts, so that small groups show.
function addThreshold({ counts, threshold, clusters, alone, 'chosen by': by }) {
  make('h2', 'Threshold', parts);
  const first = Math.max(0, counts.findIndex(n => n));
  const lowest = 2 * first / counts.length - 1;
  const top = Math.sqrt(Math.max(...counts)) || 1;
  const step = 1000 / (counts.length - first);
  const chart = svg('svg', { viewBox: '0 0 1000 225', width: '100%', role: 'img',
                             'aria-label': 'histogram of cosines with the threshold' }, parts);
  counts.slice(first).forEach((n, k) => {
    const height = 190 * Math.sqrt(n) / top;
    svg('rect', { x: step * k, y: 200 - height, width: step, height, class: 'bar' }, chart);
  });
  const at = 1000 * (threshold - lowest) / (1 - lowest);
  svg('path', { d: `M${at} 0V200`, class: 'threshold' }, chart);
  svg('text', { x: 0, y: 220 }, chart, lowest.toFixed(2));
  svg('text', { x: 1000, y: 220, 'text-anchor': 'end' }, chart, '1');
  svg('text', { x: Math.min(at, 900), y: 220 }, chart, threshold.toFixed(3));
  const pairs = counts.reduce((a, b) => a + b, 0);
  make('p', `Cosines of all ${count(pairs)} pairs of clips within windows (height: square root ` +
    `of count). The threshold was chosen by ${by}; ${count(clusters)} clusters, ` +
    `${count(alone)} clips alone.`, parts);
}

// clusters: [its name, [[a picture, a caption], ...]]
function addClusters(clusters) {
  if (!clusters.length) return;
  make('h2', 'Clusters', parts);
  const sheets = make('div', null, parts, 'sheets');
  for (const [name, pictures] of clusters) {
    const group = make('section', null, sheets);
    make('h3', name, group);
    const sheet = make('div', null, group, 'sheet');
    for (const [picture, caption] of pictures) {
      const figure = make('figure', null, sheet);
      const image = make('img', null, figure);
      image.alt = caption;
      image.loading = 'lazy';
      image.src = picture;
      make('figcaption', caption, figure);
    }
  }
}

// Both videos of each play when they are near the screen.
function addTriplets(title, items) {
  const styles = { instruction: 'best', type: '', rationale: 'dim', literal: 'dim' };
  if (!items.length) return;
  make('h2', title, parts);
  const list = make('div', null, parts, 'triplets');
  for (const item of items) {
    const card = make('article', null, list);
    card.item = item;
    make('div', null, card, 'pair');
    for (const [field, className] of Object.entries(styles)) make('p', item[field], card, className);
    cards.watch(card);
  }
}

addRows('Stages', [['stage', 'done', 'rejected', 'failed'], ...data.stages]);
data.manifests.forEach(addManifest);
if (data.threshold) addThreshold(data.threshold);
addClusters(data.clusters);
for (const { name, items } of data.shown) addTriplets(`Some of ${name}`, items);
if (data.bad.length) {
  addRows('Rejected and failed', [['stage', 'id', '', 'reason'], ...data.bad]);
}
