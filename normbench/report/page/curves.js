// Learning curves of the chosen cells, drawn as SVG; their data is read when the first is asked for.
const MEASURES = [['top-1 (%)', 2], ['training loss', 4]];
const EDGE = {left: 46, right: 16, top: 26, bottom: 26, height: 280};
const LISTED = 10; // values that are told at once
let held = null;

const curve = (i) => (held = held || embedded('curve-data'))[i];
const epochs = (i) => curve(i)[MEASURES.length] || curve(i)[0].map((_, k) => k + 1);

// Colours tell what differs: lines, in the plots' own colours; else batches; else cells. Dashes tell batches of several lines.
function looks(chosen) {
  const {palette, lines} = styles;
  const own = new Map(Object.entries(lines));
  const kinds = (key) => [...new Set(chosen.map((i) => text(key, i)))];
  const [names, batches] = [kinds(lineKey), kinds('batch')];
  const dashes = ['', '8 3', '2 3', '12 3 2 3', '16 6', '5 5', '1 5', '10 3 2 3 2 3'];
  return new Map(chosen.map((i, k) => {
    const batch = batches.indexOf(text('batch', i));
    if (names.length > 1) {
      const [colour, dash] = own.get(text(lineKey, i)) || [palette[k % palette.length], ''];
      return [i, [colour, batches.length > 1 && names.length <= palette.length ? dashes[batch % dashes.length] : dash]];
    }
    const place = batches.length > 1 ? batch : k;
    return [i, [palette[place % palette.length], dashes[Math.floor(place / palette.length) % dashes.length]]];
  }).map(([i, [colour, dash]]) => [i, {stroke: colour === '#000000' ? 'currentColor' : colour, 'stroke-dasharray': dash || null}]));
}

function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= raw);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

function drawCurves() {
  const chosen = state.chosen.filter((i) => !lacking.has(i));
  $('curves-help').hidden = chosen.length > 0;
  $('undraw').disabled = !chosen.length;
  const count = state.wanted > MOST ? `the first ${MOST} of ${state.wanted} curves` : `${chosen.length} curve${chosen.length === 1 ? '' : 's'}`;
  $('drawn').textContent = chosen.length ? `${count} below` : '';
  const style = looks(chosen);
  const figures = chosen.length ? MEASURES.map(() => make('figure')) : [];
  $('charts').replaceChildren(...figures); // all of them first: their width is asked for
  figures.forEach((figure, k) => chart(figure, k, chosen, style));
  $('legend').replaceChildren(...chosen.map((i) => legend(i, style.get(i))));
}

function legend(i, style) {
  const line = make('svg', {width: 28, height: 10, 'aria-hidden': 'true'}, make('line', {x1: 0, x2: 28, y1: 5, y2: 5, 'stroke-width': 2, ...style}));
  const last = MEASURES.map(([name, digits], k) => [name, curve(i)[k].at(-1), digits]).filter(([, v]) => v !== null);
  const told = last.map(([name, value, digits]) => `${name} ${value.toFixed(digits)}`).join(', ');
  const title = `${told} after epoch ${epochs(i).at(-1)}`;
  return make('li', {title}, line, label(i), make('span', {class: 'quiet'}, last.map(([, v, digits]) => v.toFixed(digits)).join(' \u00b7 ')), make('button', {type: 'button', 'data-drop': i, 'aria-label': 'no curve of ' + label(i)}, '\u00d7'));
}

function chart(figure, k, chosen, style) {
  const width = Math.max(240, figure.clientWidth);
  const values = chosen.flatMap((i) => curve(i)[k]).filter((v) => v !== null);
  const last = chosen.reduce((most, i) => Math.max(most, epochs(i).at(-1)), 1);
  const first = Math.min(1, ...chosen.map((i) => epochs(i)[0]));
  let [low, high] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  if (!values.length) [low, high] = [0, 1];
  const room = (high - low) * 0.04 || 0.5;
  [low, high] = [low - room, high + room];
  const x = (epoch) => EDGE.left + (last === first ? 0.5 : (epoch - first) / (last - first)) * (width - EDGE.left - EDGE.right);
  const y = (value) => EDGE.height - EDGE.bottom - ((value - low) / (high - low)) * (EDGE.height - EDGE.top - EDGE.bottom);
  const name = MEASURES[k][0];
  const svg = make('svg', {viewBox: `0 0 ${width} ${EDGE.height}`, tabindex: 0, role: 'img',
    'aria-label': `${name} per epoch of ${chosen.length} cells; arrow keys tell the values of an epoch`});
  for (const tick of ticks(low, high, 5)) {
    svg.append(make('line', {class: 'grid', x1: EDGE.left, x2: width - EDGE.right, y1: y(tick), y2: y(tick)}));
    svg.append(make('text', {x: EDGE.left - 6, y: y(tick) + 4, 'text-anchor': 'end'}, tick));
  }
  for (const tick of ticks(first, last, Math.min(8, width / 60)).filter(Number.isInteger)) {
    svg.append(make('text', {x: x(tick), y: EDGE.height - 8, 'text-anchor': 'middle'}, tick));
  }
  svg.append(make('text', {x: 8, y: 17}, name), make('text', {x: width - EDGE.right, y: 17, 'text-anchor': 'end'}, 'by epoch'));
  const guide = make('line', {class: 'guide', y1: EDGE.top, y2: EDGE.height - EDGE.bottom, visibility: 'hidden'});
  const paths = new Map(chosen.map((i) => [i, path(i, k, x, y, style.get(i))]));
  svg.append(guide, ...paths.values());
  const tip = make('div', {class: 'tip', hidden: true, 'aria-live': 'polite'});
  figure.append(svg, tip);
  hover({svg, tip, guide, paths, x, y, k, chosen, first, last, width});
}

function path(i, k, x, y, style) {
  const when = epochs(i);
  let pen = 'M', drawn = '', points = 0;
  curve(i)[k].forEach((value, n) => {
    if (value === null) { pen = 'M'; return; }
    drawn += `${pen}${x(when[n]).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = 'L';
    points += 1;
  });
  // A single epoch is a dot: a line of no length with round ends.
  return make('path', {class: 'curve', d: points === 1 ? drawn + 'h0.01' : drawn, ...style, 'stroke-linecap': points === 1 ? 'round' : null});
}

function hover(drawn) {
  const {svg, tip, guide, paths, x, y, k, chosen, first, last, width} = drawn;
  let at = null;
  const show = (epoch, height) => {
    at = Math.min(Math.max(epoch, first), last);
    const there = chosen.map((i) => [i, curve(i)[k][epochs(i).indexOf(at)]]).filter(([, v]) => v !== undefined && v !== null);
    const aim = height === null ? EDGE.top : height;
    const nearest = [...there].sort(([, a], [, b]) => Math.abs(y(a) - aim) - Math.abs(y(b) - aim)).slice(0, LISTED);
    const near = height !== null && nearest.length ? nearest[0][0] : null;
    guide.setAttribute('x1', x(at));
    guide.setAttribute('x2', x(at));
    guide.setAttribute('visibility', 'visible');
    svg.classList.toggle('dim', near !== null && chosen.length > 1);
    paths.forEach((made, i) => made.classList.toggle('near', i === near));
    const lines = nearest.sort(([, a], [, b]) => b - a).map(([i, v]) => make('div', {class: i === near ? 'near' : null}, `${v.toFixed(MEASURES[k][1])}  ${label(i)}`));
    const more = there.length - lines.length;
    tip.replaceChildren(make('div', {}, `epoch ${at}`), ...lines, ...(more > 0 ? [make('div', {}, `and ${more} more`)] : []));
    tip.hidden = false;
    const scale = svg.clientWidth / width;
    const right = x(at) > width / 2;
    tip.style.left = right ? 'auto' : `${(x(at) + 12) * scale}px`;
    tip.style.right = right ? `${(width - x(at) + 12) * scale}px` : 'auto';
    tip.style.top = `${EDGE.top + 4}px`;
  };
  const hide = () => {
    tip.hidden = true;
    at = null;
    guide.setAttribute('visibility', 'hidden');
    svg.classList.remove('dim');
  };
  const point = (event) => {
    const box = svg.getBoundingClientRect();
    const scale = width / box.width;
    const along = ((event.clientX - box.left) * scale - EDGE.left) / (width - EDGE.left - EDGE.right);
    show(Math.round(first + along * (last - first)), (event.clientY - box.top) * scale);
  };
  svg.addEventListener('pointermove', point);
  svg.addEventListener('pointerdown', point);
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('blur', hide);
  svg.addEventListener('keydown', (event) => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (event.key === 'Escape') hide();
    if (!step) return;
    event.preventDefault();
    show(at === null ? (step > 0 ? first : last) : at + step, null);
  });
}
