// Small charts as SVG: bars with intervals and an axis.

function svg(tag, attributes, parent, text) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text != null) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function axis(parent, y, x, top, height) {
  for (const value of [0, top / 2, top]) {
    svg('path', { d: `M${x(value)} ${y}v${height}`, class: 'axis' }, parent);
    svg('text', { x: x(value), y: y - 3, 'text-anchor': 'middle' }, parent, `${value}`);
  }
}

// A bar from 0 to `mean` of `top` with its interval; null where there is none.
function bar(parent, y, x, [mean, low, high], height = 12) {
  if (mean == null) return;
  svg('rect', { x: x(0), y, width: (x(mean) - x(0)).toFixed(1), height, class: 'bar' }, parent);
  if (low == null) return;
  const middle = y + height / 2;
  const ends = [low, high].map(value => x(value).toFixed(1));
  const caps = ends.map(end => `M${end} ${middle - 4}v8`).join('');
  svg('path', { d: `M${ends[0]} ${middle}H${ends[1]}${caps}`, class: 'error' }, parent);
}

// rows: [label, [mean, low, high]]; from 0 to `top`, what is beyond is cut off.
function barChart(rows, top, description) {
  const x = value => 210 + 200 * Math.min(Math.max(value / top, 0), 1);
  const chart = svg('svg', {
    viewBox: `0 0 430 ${24 + 20 * rows.length}`, width: '100%', style: 'max-width: 520px',
    role: 'img', 'aria-label': description,
  });
  axis(chart, 18, x, top, 20 * rows.length);
  rows.forEach(([label, value], k) => {
    svg('text', { x: 204, y: 33 + 20 * k, 'text-anchor': 'end' }, chart, label);
    bar(chart, 23 + 20 * k, x, value);
  });
  return chart;
}
