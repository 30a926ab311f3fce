// Look closely: two videos of a sample, large, side by side, wiped or subtracted, frame by frame.

const closeup = { sample: null, left: null, right: null, frame: 1 / 24 };

// What a sample has to show: {name: path}.
function videosOf(sample) {
  const found = { source: sample.source, reference: sample.target };
  for (const { name } of data.methods) {
    const result = sample.methods[name];
    if (result && !(name in found)) found[name] = result.video;
  }
  return found;
}

function openCloseup(sample, name) {
  closeup.sample = sample;
  byId('closeup-title').textContent = `${sample.instruction} (${sample.id}, ${sample.type})`;
  const names = Object.keys(videosOf(sample));
  const other = name == 'source' ? 'reference' : name;
  for (const [id, chosen] of [['closeup-left', 'source'], ['closeup-right', other]]) {
    byId(id).replaceChildren(...names.map(each => new Option(each, each)));
    byId(id).value = chosen;
    byId(id).onchange = loadStage;
  }
  byId('closeup').showModal();
  setView(byId('stage').dataset.view ?? 'side');
  loadStage();
}

function loadStage() {
  const stage = byId('stage');
  unloadStage();
  const paths = videosOf(closeup.sample);
  [closeup.left, closeup.right] = ['closeup-left', 'closeup-right'].map(id => {
    const name = byId(id).value;
    const video = makeVideo(paths[name], `${name}: ${closeup.sample.instruction}`, stage);
    video.loop = true;
    video.src = video.dataset.src;
    video.onloadedmetadata = () => {
      stage.classList.toggle('small', video.videoWidth < 200);           // pixels are seen as such
      setSpeed();
    };
    return video;
  });
  closeup.frame = 1 / 24;
  measureFrame(closeup.left);
  play(true);
  followTime();
}

function unloadStage() {
  for (const video of byId('stage').querySelectorAll('video')) {
    video.onloadedmetadata = null;
    video.removeAttribute('src');
    video.load();
    video.remove();
  }
}

// A browser does not say how long a frame is. It is the shortest time between two that were shown.
function measureFrame(video) {
  if (!video.requestVideoFrameCallback) return;
  let last = null;
  let shortest = Infinity;
  function shown(now, { mediaTime }) {
    const gap = mediaTime - last;
    if (last != null && gap > 1e-3 && gap < shortest) closeup.frame = shortest = gap;
    last = mediaTime;
    if (video.isConnected) video.requestVideoFrameCallback(shown);
  }
  video.requestVideoFrameCallback(shown);
}

function play(on) {
  for (const video of [closeup.left, closeup.right]) {
    if (on) video.play().catch(() => {});
    else video.pause();
  }
}

// Both take equally long; the left one sets the pace.
function setSpeed() {
  const speed = Number(byId('closeup-speed').value);
  closeup.left.playbackRate = speed;
  const pace = speed * closeup.right.duration / closeup.left.duration;
  if (pace > 1 / 16 && pace < 16) closeup.right.playbackRate = pace;
}

// Show the same moment of both; place: 0 to 1.
function seek(place) {
  for (const video of [closeup.left, closeup.right]) {
    if (video.duration) video.currentTime = place * video.duration;
  }
}

function step(by) {
  const { left, frame } = closeup;
  play(false);
  const frames = Math.max(1, Math.round(left.duration / frame));
  const now = Math.floor(left.currentTime / frame + 1e-3);
  const next = Math.min(frames - 1, Math.max(0, now + by));
  seek((next + .5) / frames);                        // its middle: rounding picks no neighbour
}

function followTime() {
  const { left, right, frame } = closeup;
  if (!left.isConnected) return;
  if (left.duration) {
    const place = left.currentTime / left.duration;
    byId('scrub').value = place;
    byId('closeup-frame').textContent = `frame ${Math.floor(left.currentTime / frame + 1e-3) + 1}`;
    const drift = Math.abs(right.currentTime / right.duration - place) * left.duration;
    const isBehind = drift > 2 * frame && drift < left.duration / 2;     // not just before a loop
    if (isBehind && !left.paused) right.currentTime = place * right.duration;
  }
  requestAnimationFrame(followTime);
}

function setView(view) {
  byId('stage').className = view;
  byId('stage').dataset.view = view;
  byId('stage').classList.toggle('small', (closeup.left?.videoWidth || 999) < 200);
  for (const button of document.querySelectorAll('[data-view]')) {
    if (button.id != 'stage') button.setAttribute('aria-pressed', button.dataset.view == view);
  }
}

function closeupKeys(event) {
  const inSelect = event.target.tagName == 'SELECT';
  const actions = {
    ' ': () => play(closeup.left.paused), ArrowLeft: () => step(-1), ArrowRight: () => step(1),
    1: () => setView('side'), 2: () => setView('wipe'), 3: () => setView('difference'),
  };
  if (inSelect || event.target.type == 'range' || !actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
}

function startCloseup() {
  const dialog = byId('closeup');
  dialog.onclose = unloadStage;
  byId('closeup-close').onclick = () => dialog.close();
  byId('closeup-play').onclick = () => play(closeup.left.paused);
  byId('closeup-back').onclick = () => step(-1);
  byId('closeup-next').onclick = () => step(1);
  byId('closeup-speed').onchange = setSpeed;
  byId('scrub').oninput = event => { play(false); seek(Number(event.target.value)); };
  byId('wipe').oninput =
    event => byId('stage').style.setProperty('--wipe', `${event.target.value}%`);
  for (const button of document.querySelectorAll('button[data-view]')) {
    button.onclick = () => setView(button.dataset.view);
  }
}
