// Accept, correct or reject each triplet, one at a time or in a grid of all.

const REASONS = ['not plausible', 'says the edit outright', 'does not lead to the target',
                 'the videos are bad'];
state.decisions ??= {};                              // {id: {decision, reason}}
state.changes ??= {};                                // {id: {instruction, type}}
state.annotator ??= '';
state.nobody ??= someone();                          // who gives no name

const cells = lazily(
  cell => {
    const { videos, instruction } = cell.triplet;
    cell.player = addVideos(videos, instruction, cell.firstChild);
  },
  cell => { cell.player.end(); cell.firstChild.replaceChildren(); });

const decisionOf = ({ id }) => state.decisions[id];
const changesOf = ({ id }) => state.changes[id] ?? {};

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

// ------------------------------------------------------------------------------ one triplet

function drawTriplet(triplet) {
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
  drawState();
}

function drawState() {
  const triplet = items[at];
  byId('decision').textContent = words(triplet);
  byId('decision').className = colourOf(triplet);
  const { instruction, type } = changesOf(triplet);
  const before = [];
  if (instruction != null) before.push(`"${triplet.instruction}"`);
  if (type != null) before.push(triplet.type);
  byId('before').textContent = before.length ? `was: ${before.join(', ')}` : '';
}

function change(field, value) {
  const triplet = items[at];
  const changes = { ...changesOf(triplet), [field]: value };
  if (value == triplet[field] || !value.trim()) delete changes[field];
  state.changes[triplet.id] = changes;
  keep();
  drawState();
}

function decide(decision, reason) {
  state.decisions[items[at].id] = decision == 'accept' ? { decision } : { decision, reason };
  keep();
  showItem(at + 1);
}

// ------------------------------------------------------------------------------ the overview

function drawOverview() {
  const which = byId('shown').value;
  cells.clear();
  byId('grid').replaceChildren();
  items.forEach((triplet, k) => {
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

// k: the triplet to go to when the overview is left
function toggleOverview(k = at) {
  const open = byId('all').hidden;
  byId('all').hidden = !open;
  byId('one').hidden = byId('fields').hidden = open;
  byId('overview').setAttribute('aria-pressed', open);
  if (open) {
    player.end();
    drawOverview();
  } else {
    cells.clear();
    showItem(k);
  }
}

// ------------------------------------------------------------------------------ file and keys

function decisions() {
  const found = {};
  for (const triplet of items) {
    if (decisionOf(triplet)) found[triplet.id] = { ...decisionOf(triplet), ...changesOf(triplet) };
  }
  return { annotator: state.annotator.trim() || state.nobody, decisions: found };
}

function loadDecisions(found) {
  for (const [id, { decision, reason, ...changes }] of Object.entries(found.decisions)) {
    if (!items.some(triplet => triplet.id == id)) throw new Error(`it knows another, ${id}`);
    state.decisions[id] = decision == 'accept' ? { decision } : { decision, reason };
    state.changes[id] = changes;
  }
  state.annotator = byId('annotator').value = found.annotator;
}

function actions() {
  const always = { o: () => toggleOverview(), d: save };
  if (!byId('all').hidden) return always;
  const found = {
    ...always,
    a: () => decide('accept'), r: () => byId('reason').focus(), ' ': () => player.restart(),
    e: () => byId('instruction').focus(),
    ArrowLeft: () => showItem(at - 1), ArrowRight: () => showItem(at + 1),
  };
  REASONS.forEach((reason, k) => { found[k + 1] = () => decide('reject', reason); });
  return found;
}

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
byId('overview').onclick = () => toggleOverview();
byId('shown').onchange = drawOverview;
startForm({
  label: triplet => triplet.instruction, isDone: decisionOf, draw: drawTriplet, actions,
  file: 'decisions.json', toFile: decisions, fromFile: loadDecisions,
});
