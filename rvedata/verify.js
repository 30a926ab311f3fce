// Accept, correct or reject each triplet, one at a time.

const REASONS = ['not plausible', 'says the edit outright', 'does not lead to the target',
                 'the videos are bad'];
state.decisions ??= {};                              // {id: {decision, reason}}
state.changes ??= {};                                // {id: {instruction}}

const decisionOf = ({ id }) => state.decisions[id];

function drawTriplet(triplet) {
  byId('instruction').value = state.changes[triplet.id]?.instruction ?? triplet.instruction;
  byId('reason').value = '';
  const about = { Type: triplet.type, Rationale: triplet.rationale,
                  'As it was': triplet.instruction, 'Literal instruction': triplet.literal,
                  Id: triplet.id };
  byId('about').replaceChildren();
  for (const [name, text] of Object.entries(about)) {
    if (!text) continue;
    make('dt', name, byId('about'));
    make('dd', text, byId('about'));
  }
  const { decision, reason } = decisionOf(triplet) ?? {};
  byId('decision').className = { accept: 'good', reject: 'bad' }[decision] ?? '';
  byId('decision').textContent =
    { accept: 'accepted', reject: `rejected: ${reason}` }[decision] ?? 'not decided';
}

function correct(instruction) {
  const triplet = items[at];
  const isChanged = instruction.trim() && instruction != triplet.instruction;
  state.changes[triplet.id] = isChanged ? { instruction } : {};
  keep();
}

function decide(decision, reason) {
  state.decisions[items[at].id] = decision == 'accept' ? { decision } : { decision, reason };
  keep();
  showItem(at + 1);
}

// ------------------------------------------------------------------------------ file and keys

function decisions() {
  const found = {};
  for (const triplet of items) {
    const { id } = triplet;
    if (decisionOf(triplet)) found[id] = { ...decisionOf(triplet), ...state.changes[id] };
  }
  return { decisions: found };
}

function loadDecisions(found) {
  for (const [id, { decision, reason, instruction }] of Object.entries(found.decisions)) {
    if (!items.some(triplet => triplet.id == id)) throw new Error(`it knows another, ${id}`);
    state.decisions[id] = decision == 'accept' ? { decision } : { decision, reason };
    state.changes[id] = instruction ? { instruction } : {};
  }
}

function actions() {
  const found = {
    a: () => decide('accept'), r: () => byId('reason').focus(), d: save,
    e: () => byId('instruction').focus(), ' ': () => player.restart(),
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
byId('instruction').oninput = event => correct(event.target.value);
byId('accept').onclick = () => decide('accept');
startForm({
  label: triplet => triplet.instruction, isDone: decisionOf, draw: drawTriplet, actions,
  file: 'decisions.json', toFile: decisions, fromFile: loadDecisions,
});
