// What report, study and verify have in common: elements, tables, keys, files, and videos that play
// in step.
'use strict';

const data = JSON.parse(document.getElementById('data').textContent);

const byId = id => document.getElementById(id);

// Text from elsewhere comes in as `text`, and so is shown and never run.
function make(tag, text, parent, className) {
  const element = document.createElement(tag);
  if (text != null) element.textContent = text;
  if (className) element.className = className;
  if (parent) parent.append(element);
  return element;
}

// A line of cells in a table; returns them.
function addLine(table, texts, tag = 'td') {
  const line = make('tr', null, table);
  return texts.map(text => make(tag, text, line));
}

// A table that scrolls by itself where it is wider than the page.
function addTable(parent) {
  return make('table', null, make('div', null, parent, 'scroll'));
}

// Do what `actions` has for a key, unless one is typing, or pressing a button with it.
function onKey(event, actions) {
  const isTyping = event.target.matches('input, textarea, select');
  const isPress = [' ', 'Enter'].includes(event.key) && event.target.matches('button, summary, a');
  const isShortcut = event.ctrlKey || event.metaKey || event.altKey;
  if (isTyping || isPress || isShortcut || !actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
}

// A file's name may hold characters that mean something in an address: a#1?.mp4
function fileUrl(path) {
  return path.split('/').map(encodeURIComponent).join('/');
}

function makeVideo(path, description, parent) {
  const video = make('video', null, parent);
  video.dataset.src = fileUrl(path);                 // loaded by playInStep, not before
  video.muted = true;
  video.playsInline = true;
  video.setAttribute('aria-label', description);
  video.onloadedmetadata = () => video.classList.toggle('small', video.videoWidth < 200);
  return video;
}

// Let go of a video's file, and of the memory that it takes.
function unload(video) {
  video.onloadedmetadata = video.onloadeddata = video.onerror = video.onended = null;
  video.removeAttribute('src');
  video.load();
}

function download(name, text, type) {
  const link = make('a', null, document.body);
  link.download = name;
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.click();
  link.remove();
}

// Load videos, start them at the same moment when all can play, and again when all have ended.
// stretch: each plays at the pace at which it takes as long as the longest of them.
function playInStep(videos, stretch = true) {
  const playing = [];
  let waiting = videos.length;
  let ended = 0;

  function restart() {
    ended = 0;
    for (const video of playing) {
      video.currentTime = 0;
      video.play().catch(() => {});                  // a browser may refuse; the button still works
    }
  }

  function settled() {                               // one more is loaded, or has failed
    waiting -= 1;
    if (waiting > 0 || !playing.length) return;
    const longest = Math.max(...playing.map(video => video.duration));
    for (const video of playing) {
      const pace = stretch ? video.duration / longest || 1 : 1;
      video.playbackRate = Math.min(16, Math.max(1 / 16, pace));         // what browsers can do
    }
    restart();
  }

  for (const video of videos) {
    video.onloadeddata = () => { video.onloadeddata = null; playing.push(video); settled(); };
    video.onerror = () => {
      video.onerror = null;
      make('small', 'cannot be played here', video.parentNode);
      settled();
    };
    video.onended = () => { ended += 1; if (ended >= playing.length) restart(); };
    video.src = video.dataset.src;
  }

  return {
    restart,
    toggle() {
      if (playing.some(video => !video.paused)) return playing.forEach(video => video.pause());
      playing.filter(video => !video.ended).forEach(video => video.play());
    },
    end() { videos.forEach(unload); },
  };
}

// A figure for each of {name: path}, played in step.
function addVideos(files, description, parent, stretch) {
  const videos = Object.entries(files).map(([name, path]) => {
    const figure = make('figure', null, parent);
    make('figcaption', name, figure);
    return makeVideo(path, `${name}: ${description}`, figure);
  });
  return playInStep(videos, stretch);
}

// fill(node) when a node comes near the screen, empty(node) when it is far away: memory stays flat
// however many there are. One observer for all nodes.
function lazily(fill, empty) {
  const filled = new Set();
  const observer = new IntersectionObserver(entries => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && !filled.has(target)) {
        filled.add(target);
        fill(target);
      } else if (!isIntersecting && filled.delete(target)) {
        target.style.minHeight = target.offsetHeight + 'px';             // nothing below it moves
        empty(target);
      }
    }
  }, { rootMargin: '300px' });
  return {
    watch: node => observer.observe(node),
    clear() {
      observer.disconnect();
      filled.forEach(empty);
      filled.clear();
    },
  };
}
