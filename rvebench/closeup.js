// Look closely: two videos of a sample, large, side by side, wiped or subtracted, frame by frame.

const closeup = { sample: null, left: null, player: null, frame: 1 / 24 };

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
  closeup.player?.end();
  byId('stage').replaceChildren();
  const paths = videosOf(closeup.sample);
  const videos = ['closeup-left', 'closeup-right'].map(id => {
    const name = byId(id).value;
    return makeVideo(paths[name], `${name}: ${closeup.sample.instruction}`, byId('stage'));
  });
  closeup.left = videos[0];
  closeup.frame = 1 / 24;
  measureFrame(closeup.left);
  closeup.player = playInStep(videos);
  setSpeed();
  followTime();
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

function setSpeed() {
  closeup.player.setSpeed(Number(byId('closeup-speed').value));
}

// Stop, and show the same moment of both; place: 0 to 1.
function seek(place) {
  closeup.player.pause();
  for (const video of byId('stage').querySelectorAll('video')) {
    if (video.duration) video.currentTime = Math.min(place, .999) * video.duration;
  }
}

function currentFrame() {
  return Math.floor(closeup.left.currentTime / closeup.frame + 1e-3);
}

function step(by) {
  const frames = Math.max(1, Math.round(closeup.left.duration / closeup.frame));
  const next = Math.min(frames - 1, Math.max(0, currentFrame() + by));
  seek((next + .5) / frames);                        // its middle: rounding picks no neighbour
}

function followTime() {
  const { left } = closeup;
  if (!left.isConnected) return;
  if (left.duration) {
    byId('scrub').value = left.currentTime / left.duration;
    byId('closeup-frame').textContent = `frame ${currentFrame() + 1}`;
  }
  requestAnimationFrame(followTime);
}

function setView(view) {
  byId('stage').className = byId('stage').dataset.view = view;
  for (const button of document.querySelectorAll('button[data-view]')) {
    button.setAttribute('aria-pressed', button.dataset.view == view);
  }
}

function closeupKeys(event) {
  const actions = {
    ' ': () => closeup.player.toggle(), ArrowLeft: () => step(-1), ArrowRight: () => step(1),
    1: () => setView('side'), 2: () => setView('wipe'), 3: () => setView('difference'),
  };
  onKey(event, actions);
}

function startCloseup() {
  const dialog = byId('closeup');
  dialog.onclose = () => { closeup.player.end(); byId('stage').replaceChildren(); };
  byId('closeup-close').onclick = () => dialog.close();
  byId('closeup-play').onclick = () => closeup.player.toggle();
  byId('closeup-back').onclick = () => step(-1);
  byId('closeup-next').onclick = () => step(1);
  byId('closeup-speed').onchange = setSpeed;
  byId('scrub').oninput = event => seek(Number(event.target.value));
  byId('wipe').oninput =
    event => byId('stage').style.setProperty('--wipe', `${event.target.value}%`);
  for (const button of document.querySelectorAll('button[data-view]')) {
    button.onclick = () => {
      setView(button.dataset.view);
      byId('closeup-play').focus();                  // so that space goes on meaning that
    };
  }
}
