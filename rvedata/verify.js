// One triplet at a time, or all in a grid: accept, correct or reject. All is kept here at once.

const REASONS = ['not plausible', 'says the edit outright', 'does not lead to the target',
                 'the videos are bad'];
const kept = `verify ${data.key}`;
const state = JSON.parse(localStorage.getItem(kept) ?? '{}');
state.decisions ??= {};                              // {id: {decision, reason}}
state.changes ??= {};                                // {id: {instruction, type}}
state.annotator ??= '';
state.nobody ??= crypto.getRandomValues(new Uint32Array(2)).join('-');   // who gives no name

const { triplets } = data;
let at = 0;
let player = null;
const cells = lazily(fillCell, emptyCell);

const decisionOf = ({ id }) => state.decisions[id];
const changesOf = ({ id }) => state.changes[id] ?? {};

function keep() {
  localStorage.setItem(kept, JSON.stringify(state));
}

const COLOURS = { accept: 'good', reject: 'bad' };
const colourOf = triplet => COLOURS[decisionOf(triplet)?.decision] ?? '';

function words(triplet) {
  const { decision, reason } = decisionOf(triplet) ?? {};
  if (!decision) return 'not decided';
  return decision == 'accept' ? 'accepted' : `rejected: ${reason}`;
}

function isShown(triplet, which) {
  if (which == 'changed') return Object.keys(changesOf(triplet)).length > 0;
  return words(triplet).startsWith(which);
}

function addVideos(triplet, parent) {
  const paths = { source: triplet.source_video_path, target: triplet.target_video_path };
  const videos = Object.entries(paths).map(([name, path]) => {
    const figure = make('figure', null, parent);
    make('figcaption', name, figure);
    const video = makeVideo(path, `${name}: ${triplet.instruction}`, figure);
    video.onloadedmetadata = () => figure.classList.toggle('small', video.videoWidth < 200);
    return video;
  });
  return playInStep(videos);
}

// ------------------------------------------------------------------------------ one triplet

function showOne(k) {
  at = Math.min(triplets.length - 1, Math.max(0, k));
  const triplet = triplets[at];
  const { instruction, type } = { ...triplet, ...changesOf(triplet) };
  byId('instruction').value = instruction;
  byId('type').replaceChildren(...data.types[triplet.type].map(each => new Option(each, each)));
  byId('type').value = type;
  byId('reason').value = '';
  const about = { Rationale: triplet.rationale, 'Literal instruction': triplet.literal,
                  Id: triplet.id };
  byId('about').replaceChildren();
  for (const [name, text] of Object.entries(about)) {
    if (!text) continue;
    make('dt', name, byId('about'));
    make('dd', text, byId('about'));
  }
  player?.end();
  byId('videos').replaceChildren();
  player = addVideos(triplet, byId('videos'));
  drawState();
}

function drawState() {
  const triplet = triplets[at];
  const done = triplets.filter(decisionOf).length;
  byId('where').textContent = `${at + 1} of ${triplets.length}`;
  byId('count').textContent = `${done} of ${triplets.length} decided`;
  byId('decision').textContent = words(triplet);
  byId('decision').className = colourOf(triplet);
  const { instruction, type } = changesOf(triplet);
  const before = [];
  if (instruction != null) before.push(`"${triplet.instruction}"`);
  if (type != null) before.push(triplet.type);
  byId('before').textContent = before.length ? `was: ${before.join(', ')}` : '';
}

function change(field, value) {
  const triplet = triplets[at];
  const changes = { ...changesOf(triplet), [field]: value };
  if (value == triplet[field] || !value.trim()) delete changes[field];
  state.changes[triplet.id] = changes;
  keep();
  drawState();
}

function decide(decision, reason) {
  state.decisions[triplets[at].id] = decision == 'accept' ? { decision } : { decision, reason };
  keep();
  showOne(at + 1);
}

// ------------------------------------------------------------------------------ the overview

function drawOverview() {
  const which = byId('shown').value;
  cells.clear();
  byId('grid').replaceChildren();
  triplets.forEach((triplet, k) => {
    if (!isShown(triplet, which)) return;
    const cell = make('article', null, byId('grid'));
    cell.triplet = triplet;
    make('div', null, cell, 'pair');
    const open = make('button', changesOf(triplet).instruction ?? triplet.instruction, cell);
    open.onclick = () => toggleOverview(k);
    make('div', words(triplet), cell, colourOf(triplet));
    cells.watch(cell);
  });
}

function fillCell(cell) {
  cell.player = addVideos(cell.triplet, cell.querySelector('.pair'));
}

function emptyCell(cell) {
  cell.player.end();
  cell.querySelector('.pair').replaceChildren();
}

// k: the triplet to go to when the overview is left
function toggleOverview(k = at) {
  const open = byId('all').hidden;
  byId('all').hidden = !open;
  byId('one').hidden = open;
  byId('overview').setAttribute('aria-pressed', open);
  if (open) {
    player.end();
    drawOverview();
  } else {
    cells.clear();
    showOne(k);
  }
}

// ------------------------------------------------------------------------- saving and going on

function decisions() {
  const found = {};
  for (const triplet of triplets) {
    if (decisionOf(triplet)) found[triplet.id] = { ...decisionOf(triplet), ...changesOf(triplet) };
  }
  return { annotator: state.annotator.trim() || state.nobody, decisions: found };
}

async function load(file) {
  byId('message').textContent = '';
  try {
    const found = JSON.parse(await file.text());
    for (const [id, { decision, reason, ...changes }] of Object.entries(found.decisions)) {
      if (!triplets.some(triplet => triplet.id == id)) throw new Error(`it knows another, ${id}`);
      state.decisions[id] = decision == 'accept' ? { decision } : { decision, reason };
      state.changes[id] = changes;
    }
    state.annotator = byId('annotator').value = found.annotator;
    keep();
    goOn();
  } catch (error) {
    byId('message').textContent = `${file.name} cannot be loaded: ${error.message}`;
  }
}

function save() {
  download('decisions.json', JSON.stringify(decisions(), null, 1), 'application/json');
}

function goOn() {
  showOne(triplets.findIndex(triplet => !decisionOf(triplet)));
}

// ------------------------------------------------------------------------------ keys and start

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches('input, textarea, select')) {
    if (event.key == 'Escape') event.target.blur();
    return;
  }
  const isOne = byId('all').hidden;
  const onButton = event.target.tagName == 'BUTTON' && (event.key == ' ' || event.key == 'Enter');
  const actions = { o: () => toggleOverview(), d: save };
  const ofOne = {
    a: () => decide('accept'), r: () => byId('reason').focus(), ' ': () => player.restart(),
    e: () => byId('instruction').focus(),
    ArrowLeft: () => showOne(at - 1), ArrowRight: () => showOne(at + 1),
  };
  REASONS.forEach((reason, k) => { ofOne[k + 1] = () => decide('reject', reason); });
  if (isOne) Object.assign(actions, ofOne);
  if (!actions[event.key] || onButton) return;
  event.preventDefault();
  actions[event.key]();
}

function start() {
  REASONS.forEach((reason, k) => {
    const button = make('button', `reject: ${reason} (${k + 1})`, byId('reasons'));
    button.onclick = () => decide('reject', reason);
  });
  byId('reason').onkeydown = event => {
    const reason = event.target.value.trim();
    if (event.key != 'Enter' || !reason) return;
    event.target.blur();
    decide('reject', reason);
  };
  byId('annotator').value = state.annotator;
  byId('annotator').oninput = event => { state.annotator = event.target.value; keep(); };
  byId('instruction').oninput = event => change('instruction', event.target.value);
  byId('type').onchange = event => change('type', event.target.value);
  byId('accept').onclick = () => decide('accept');
  byId('back').onclick = () => showOne(at - 1);
  byId('next').onclick = () => showOne(at + 1);
  byId('again').onclick = () => player.restart();
  byId('overview').onclick = () => toggleOverview();
  byId('shown').onchange = drawOverview;
  byId('save').onclick = save;
  byId('load').onchange = event => load(event.target.files[0]);
  addEventListener('keydown', pressed);
  goOn();
}

if (triplets.length) {
  start();
} else {
  byId('where').textContent = 'Nothing to verify.';
  byId('one').hidden = true;
}
