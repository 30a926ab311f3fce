// The samples: filters and order, in the address too; a card for each.

const names = data.methods.map(method => method.name);
const roleOf = Object.fromEntries(data.methods.map(method => [method.name, method.role]));
let subset = '';                                     // '' is all
let pair = null;                                     // [a, b]: only samples on which a beats b
const cards = lazily(fillCard, emptyCard);
const SHORT = { 'Geometric mean': 'GM' };            // in the narrow table under a video

const scoreOf = (sample, method, column) => sample.methods[method]?.scores[column];
const rivals = names.filter(name => !roleOf[name]);  // neither "do nothing" nor the reference
const boxes = () => [...byId('methods').querySelectorAll('input')];       // of the rivals
const shownNames = () => boxes().filter(box => box.checked).map(box => box.value);
const scoredNames = sample =>
  names.filter(name => sample.methods[name] && (roleOf[name] || shownNames().includes(name)));
const inSubset = () => data.samples.filter(sample => !subset || sample.subset == subset);
const number = (value, column) => value.toFixed(data.unit.includes(column) ? 3 : 1);
const typesOf = samples => [...new Set(samples.map(sample => sample.type))];

// ------------------------------------------------------------------------------ filters and order

function matches(sample) {
  const text = `${sample.id} ${sample.type} ${sample.instruction}`.toLowerCase();
  const column = byId('column').value;
  const type = byId('type').value;
  const hasFailed = shownNames().some(name => sample.methods[name]?.failed);
  return (!subset || sample.subset == subset)
    && (!type || sample.type == type)
    && (!byId('failed').checked || hasFailed)
    && text.includes(byId('search').value.toLowerCase())
    && (!pair || scoreOf(sample, pair[0], column) > scoreOf(sample, pair[1], column));
}

// A sample's place in an order, the smallest first; Infinity where it has none.
function sortKey(sample, order, column) {
  const shown = shownNames().map(name => sample.methods[name]).filter(result => result);
  const scores = shown.map(result => result.scores[column]).filter(score => score != null);
  const low = Math.min(...scores);                   // Infinity of none
  const high = Math.max(...scores);                  // -Infinity of none
  const methods = scores.length > 1 ? low - high : Infinity;
  return { low, high: -high, methods }[order];
}

function listed() {
  const found = data.samples.filter(matches);
  const order = byId('sort').value;
  if (order == 'order') return found;
  const column = byId('column').value;
  const keys = new Map(found.map(sample => [sample, sortKey(sample, order, column)]));
  return found.sort((a, b) => keys.get(a) - keys.get(b) || 0);           // NaN: neither has one
}

// sample: the one to name in the address
function drawSamples(sample) {
  const found = listed();
  cards.clear();
  byId('list').replaceChildren(...found.map(makeCard));
  for (const card of byId('list').children) cards.watch(card);
  byId('count').textContent = `${found.length} of ${data.samples.length} samples`;
  byId('unpair').hidden = !pair;
  if (pair) byId('unpair').textContent = `only where ${pair[0]} beats ${pair[1]} ×`;
  history.replaceState(null, '', `#${address(sample)}`);
}

// ------------------------------------------------------------------------------ the address

const controls = { type: '', search: '', sort: 'order', column: data.main };         // defaults

function address(sample) {
  const state = new URLSearchParams();
  for (const [id, usual] of Object.entries(controls)) {
    if (byId(id).value != usual) state.set(id, byId(id).value);
  }
  if (byId('failed').checked) state.set('failed', 1);
  if (subset) state.set('subset', subset);
  for (const box of boxes()) if (!box.checked) state.append('hide', box.value);
  if (pair) {
    state.set('won', pair[0]);
    state.set('over', pair[1]);
  }
  if (sample) state.set('sample', sample.id);
  return state.toString();
}

function readAddress() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const [id, usual] of Object.entries(controls)) {
    byId(id).value = state.get(id) ?? usual;
    if (!byId(id).value) byId(id).value = usual;     // an option that is not there
  }
  byId('failed').checked = state.has('failed');
  subset = data.parts.some(({ name }) => name == state.get('subset')) ? state.get('subset') : '';
  for (const box of boxes()) box.checked = !state.getAll('hide').includes(box.value);
  pair = state.has('won') && state.has('over') ? [state.get('won'), state.get('over')] : null;
  return state.get('sample');
}

function goTo(id) {
  const card = byId('list').querySelector(`article[data-id="${CSS.escape(id)}"]`);
  card?.scrollIntoView();
  card?.focus({ preventScroll: true });
}

// ------------------------------------------------------------------------------ a card

function makeCard(sample) {
  const card = make('article');
  card.dataset.id = sample.id;
  card.sample = sample;
  card.tabIndex = -1;
  const header = make('header', null, card);
  make('h3', sample.instruction, header);
  make('small', `${sample.id} · ${sample.subset} · ${sample.type}`, header);
  make('button', 'play / pause', header).onclick = () => card.player?.toggle();
  const link = make('a', 'link', header);
  link.title = 'the address of this sample with the present filters';
  link.href = '#';
  link.onclick = () => { link.href = `#${address(sample)}`; };
  make('div', null, card, 'row');
  return card;
}

function fillCard(card) {
  const { sample } = card;
  const videos = [];
  const scored = scoredNames(sample);

  function addFigure(title, path, name) {
    const element = make('figure', null, card.querySelector('.row'));
    make('figcaption', title, element);
    if (path) {
      videos.push(makeVideo(path, `${title}: ${sample.instruction}`, element));
    }
    if (name) addScores(element, sample, name);
  }

  for (const [title, path] of [['source', sample.source], ['reference', sample.target]]) {
    addFigure(title, path, scored.find(name => sample.methods[name].video == path));
  }
  for (const name of scored) {
    const { video, failed, scores } = sample.methods[name];
    if (video == sample.source || video == sample.target) continue;      // it stands there already
    addFigure(name, failed && !('TF' in scores) ? null : video, name);
  }
  if (data.judgeSees) addWhatTheJudgeSaw(card, sample, scored);
  card.player = playInStep(videos);
}

function emptyCard(card) {
  card.player.end();
  card.player = null;
  card.querySelector('.row').replaceChildren();
  card.querySelector('details')?.remove();
}

function isBest(sample, name, column) {
  const own = scoreOf(sample, name, column);
  const others = shownNames();
  return !roleOf[name] && others.length > 1
    && others.every(other => !(scoreOf(sample, other, column) > own));
}

// The reasons of a judge who was asked twice a time: about EA and PC, then about GN and GR.
function reasonsOf({ reasons }) {
  return reasons.length == 2 ? { EA: reasons[0], GN: reasons[1], all: [] } : { all: reasons };
}

function addScores(element, sample, name) {
  const result = sample.methods[name];
  if (result.failed) make('div', result.failed, element, 'bad');
  const table = make('table', null, element, 'scores');
  const reasons = reasonsOf(result);
  const has = column => result.scores[column] != null;
  const judged = data.columns.filter(column => has(column) && !data.unit.includes(column));
  const measured = data.columns.filter(column => has(column) && data.unit.includes(column));
  judged.sort((a, b) => (b == data.main) - (a == data.main));            // what ranks comes first
  let cell = null;
  for (const column of judged) {
    const line = make('tr', null, table, column == data.main ? 'main' : '');
    make('th', SHORT[column] ?? column, line).title = column;
    make('td', number(result.scores[column], column), line,
         isBest(sample, name, column) ? 'number best' : 'number');
    if (['PC', 'GR'].includes(column) && cell) {     // one reason for two
      cell.rowSpan = 2;
      continue;
    }
    cell = make('td', null, line, 'reason');
    if (reasons[column]) addClamped(reasons[column], cell);
  }
  for (const reason of reasons.all) addClamped(reason, element);
  for (const reason of result.missing) {
    addClamped(`missing: ${reason}`, element).classList.add('bad');
  }
  const list = measured.map(column => `${column} ${number(result.scores[column], column)}`);
  make('div', list.join(' · '), element, 'dim');
}

function addClamped(text, parent) {
  const element = make('div', text, parent, 'clamped');
  element.title = 'click to read all of it';
  element.onclick = () => element.classList.toggle('open');
  return element;
}

// ------------------------------------------------------------------------------ what the judge saw

function addWhatTheJudgeSaw(card, sample, scored) {
  const details = make('details', null, card, 'saw');
  make('summary', 'what the judge saw, was asked and answered', details);
  details.ontoggle = () => {
    details.ontoggle = null;
    addFrames('source', sample.source, null, details);
    for (const name of scored) {
      const { video, frames, replies } = sample.methods[name];
      if (!roleOf[name]) addFrames(name, video, frames, details);
      for (const [about, text] of replies.flatMap(Object.entries)) {
        addText(`${nameOf(name)}, reply about ${about}`, text || 'none', details);
      }
    }
    const asked = data.judgeSees.prompts[sample.type];
    for (const [about, text] of Object.entries(asked ?? {})) {
      const own = text.replaceAll('{instruction}', () => sample.instruction);
      addText(`asked about ${about}`, own, details);
    }
    if (!asked) make('p', 'The prompt was not kept with these scores.', details);
  };
}

function addText(title, text, parent) {
  make('h4', title, parent);
  make('pre', text, parent);
}

function addFrames(name, path, length, parent) {
  const count = data.judgeSees.frames;
  make('h4', `${name}, ${count} frames`, parent);
  drawFrames(path, count, length, make('div', null, parent, 'scroll'));
}

// `count` evenly spaced frames of a clip, first and last among them, as the judge gets them.
// length: frames of the clip, null if nobody counted them.
async function drawFrames(path, count, length, parent) {
  const video = makeVideo(path, '');
  const event = name => new Promise((resolve, reject) => {
    video.addEventListener(name, resolve, { once: true });
    video.addEventListener('error', reject, { once: true });
  });
  video.preload = 'auto';
  video.src = video.dataset.src;
  try {
    await event('loadeddata');
    for (let k = 0; k < count; k++) {
      let place = count > 1 ? k / (count - 1) : 0;
      if (length) place = (Math.round(place * (length - 1)) + .5) / length;          // its middle
      const seeked = event('seeked');
      video.currentTime = Math.min(place * video.duration, video.duration - 1e-3);
      await seeked;
      const canvas = make('canvas', null, parent);
      canvas.setAttribute('role', 'img');
      canvas.setAttribute('aria-label', `frame ${k + 1} of ${count}`);
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      canvas.getContext('2d').drawImage(video, 0, 0);
    }
  } catch {
    make('span', 'cannot be played here', parent, 'bad');
  }
  unload(video);
}

// ------------------------------------------------------------------------------ start

function startSamples() {
  const add = (id, value, text) => byId(id).append(new Option(text, value));
  for (const type of typesOf(data.samples)) add('type', type, type);
  for (const column of data.columns) add('column', column, column);
  for (const name of rivals) {
    const label = make('label', null, byId('methods'));
    const box = make('input', null, label);
    box.type = 'checkbox';
    box.checked = true;
    box.value = name;
    label.append(` ${name}`);
    box.onchange = () => drawSamples();
  }
  for (const id of ['type', 'sort', 'failed']) byId(id).onchange = () => drawSamples();
  byId('column').onchange = () => choosePair(pair);
  byId('search').oninput = () => drawSamples();
  byId('unpair').onclick = () => choosePair(null);
}
