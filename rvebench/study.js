// A ranking of a sample's edits for each question.
// state.ranks[sample][criterion] = {letter: place}, 1 is the best.

state.rater ??= crypto.getRandomValues(new Uint32Array(2)).join('-');  // names nobody
state.ranks ??= {};

let active = 0;                                      // the criterion that keys go to
let shareNext = false;                               // "=" was pressed

const lettersOf = k => Object.keys(items[k].videos).filter(name => name != 'source');
const ranksOf = (k, criterion) => ((state.ranks[k] ??= {})[criterion] ??= {});
const isDone = (k, criterion) =>
  lettersOf(k).every(letter => state.ranks[k]?.[criterion]?.[letter]);

// ------------------------------------------------------------------------------ ranking

function setRank(criterion, letter, place) {
  const ranks = ranksOf(at, criterion);
  delete ranks[letter];                              // what was ranked last is the last key
  if (place) ranks[letter] = place;
  keep();
  drawCriteria();
  drawBar();
}

// The first free place: 1, 2, 3, or after a tie 1, 1, 3. Or the last place, shared.
function rankNext(criterion, letter) {
  const ranks = ranksOf(at, criterion);
  if (ranks[letter]) return;
  const taken = Object.values(ranks);
  const last = taken.at(-1);
  const places = lettersOf(at).map((_, k) => k + 1);
  const isFree = place => !taken.includes(place)
    && taken.filter(each => each < place).length == place - 1;
  const next = places.find(isFree);
  setRank(criterion, letter, shareNext && last ? last : next);
  shareNext = false;
  if (isDone(at, criterion) && active < data.criteria.length - 1) {
    active += 1;
    drawCriteria();
  }
}

// ------------------------------------------------------------------------------ showing

function makeLetter(letter, criterion, parent) {
  const button = make('button', letter, parent, 'letter');
  button.onclick = event => {
    event.stopPropagation();
    active = data.criteria.findIndex(({ name }) => name == criterion);
    if (ranksOf(at, criterion)[letter]) setRank(criterion, letter, null);
    else rankNext(criterion, letter);
  };
}

function makePlace(title, criterion, place, parent) {
  const box = make('div', null, parent, 'place');
  make('small', title, box);
  for (const letter of lettersOf(at)) {
    if ((ranksOf(at, criterion)[letter] ?? null) == place) makeLetter(letter, criterion, box);
  }
}

function drawCriteria() {
  byId('criteria').replaceChildren(...data.criteria.map(({ name, question }, k) => {
    const box = make('div', null, null, 'criterion');
    if (k == active) box.classList.add('active');
    if (isDone(at, name)) box.classList.add('done');
    box.onclick = () => { active = k; drawCriteria(); };
    make('h3', `${name}. ${question}`, box);
    const places = make('div', null, box, 'places');
    makePlace('not ranked', name, null, places);
    const n = lettersOf(at).length;
    for (let place = 1; place <= n; place++) {
      const words = { 1: '1 best', [n]: `${n} worst` };
      makePlace(words[place] ?? place, name, place, places);
    }
    return box;
  }));
}

function drawSample(sample) {
  active = Math.max(0, data.criteria.findIndex(({ name }) => !isDone(at, name)));
  shareNext = false;
  byId('instruction').textContent = sample.instruction;
  drawCriteria();
}

// ------------------------------------------------------------------------------ file and keys

function ratings() {
  const rankings = [];
  items.forEach((sample, k) => {
    for (const { name } of data.criteria) {
      if (!isDone(k, name)) continue;
      rankings.push({ sample: k, criterion: name, ranks: state.ranks[k][name] });
    }
  });
  return { study: data.study, rater: state.rater, rankings };
}

function loadRatings(found) {
  if (found.study != data.study) throw new Error('it is of another study');
  for (const { sample, criterion, ranks } of found.rankings) {
    if (items[sample]) (state.ranks[sample] ??= {})[criterion] = ranks;
  }
  state.rater = found.rater ?? state.rater;
}

function actions(event) {
  const criterion = data.criteria[active].name;
  const letter = event.key.toUpperCase();
  const found = {
    '=': () => { shareNext = true; },
    ArrowRight: () => showItem(at + 1), ArrowLeft: () => showItem(at - 1),
    Enter: () => showItem(at + 1), ' ': () => player.restart(),
  };
  if (lettersOf(at).includes(letter)) found[event.key] = () => rankNext(criterion, letter);
  return found;
}

startForm({
  label: sample => sample.instruction,
  isDone: (sample, k) => data.criteria.every(({ name }) => isDone(k, name)),
  draw: drawSample,
  stretch: false,                                    // none is slowed, which would look smoother
  actions,
  file: 'ratings.json', toFile: ratings, fromFile: loadRatings,
});
