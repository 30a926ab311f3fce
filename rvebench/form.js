// One item at a time: its videos, and what a person says of it. What is chosen is kept in this
// browser at once; it can be saved as a file, and loaded to go on, here or elsewhere.

const { items } = data;
const state = JSON.parse(localStorage.getItem(data.key) ?? '{}');

let form = null;                                     // of startForm, for study.js or verify.js
let at = 0;                                          // the item
let player = null;

function keep() {
  localStorage.setItem(data.key, JSON.stringify(state));
}

function drawBar() {
  byId('where').textContent = `${at + 1} of ${items.length}`;
  const done = items.filter((item, k) => form.isDone(item, k)).length;
  byId('count').textContent = `${done} of ${items.length} done`;
}

function showItem(k) {
  at = Math.min(items.length - 1, Math.max(0, k));
  const item = items[at];
  player?.end();
  byId('videos').replaceChildren();
  player = addVideos(item.videos, form.label(item), byId('videos'), form.stretch);
  form.draw(item);
  drawBar();
}

function goOn() {
  showItem(items.findIndex((item, k) => !form.isDone(item, k)));
}

function save() {
  download(form.file, JSON.stringify(form.toFile(), null, 1), 'application/json');
}

async function load(file) {
  byId('message').textContent = '';
  try {
    form.fromFile(JSON.parse(await file.text()));
    keep();
    goOn();
  } catch (error) {
    byId('message').textContent = `${file.name} cannot be loaded: ${error.message}`;
  }
}

function pressed(event) {
  if (event.key == 'Escape') event.target.blur();    // out of a text
  onKey(event, form.actions(event));
}

// { label(item), isDone(item, k), draw(item), actions(event), file, toFile(), fromFile(found) }
function startForm(found) {
  form = found;
  byId('help').append(...data.help.map(text => make('p', text)));
  byId('save').textContent = `save ${form.file}`;
  byId('save').onclick = save;
  byId('load').onchange = event => load(event.target.files[0]);
  if (!items.length) {
    byId('where').textContent = 'There is nothing here.';
    document.querySelector('main').hidden = true;
    return;
  }
  byId('back').onclick = () => showItem(at - 1);
  byId('next').onclick = () => showItem(at + 1);
  byId('again').onclick = () => player.restart();
  addEventListener('keydown', pressed);
  goOn();
}
