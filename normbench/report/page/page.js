// What a click, a key and an address do.
function drawAll() {
  setControls();
  drawCells();
  drawCurves();
}

function changed(...parts) {
  writeAddress();
  parts.forEach((draw) => draw());
}

function choose(cells) {
  state.wanted = cells.length;
  state.chosen = cells.slice(0, MOST);
  document.querySelectorAll('#rows tbody tr').forEach((row) => {
    const chosen = state.chosen.includes(Number(row.dataset.cell));
    row.classList.toggle('chosen', chosen);
    row.querySelector('input').checked = chosen;
  });
  changed(drawCurves);
}

function toggle(i) {
  if (!lacking.has(i)) choose(state.chosen.includes(i) ? state.chosen.filter((k) => k !== i) : [...state.chosen, i]);
}

function sortBy(key) {
  if (state.sort !== key) [state.sort, state.descending] = [key, false];
  else if (!state.descending) state.descending = true;
  else [state.sort, state.descending] = ['', false];
  changed(drawCells);
  document.querySelector(`[data-sort="${CSS.escape(key)}"]`).focus();
}

// An address with a "=" is a state, one without names a part of the page.
function follow() {
  if (location.hash && !location.hash.includes('=')) return;
  readAddress();
  drawAll();
}

document.querySelector('#rows thead').addEventListener('click', (event) => {
  const button = event.target.closest('[data-sort]');
  if (button) sortBy(button.dataset.sort);
});
document.querySelector('#rows tbody').addEventListener('click', (event) => {
  const row = event.target.closest('tr');
  if (row && String(getSelection()) === '') toggle(Number(row.dataset.cell));
});
let waiting = 0;
$('find').addEventListener('input', () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    state.find = $('find').value;
    changed(setControls, drawCells);
  }, 120);
});
$('choices').addEventListener('change', (event) => {
  const {where} = event.target.dataset;
  if (event.target.value) state.where.set(where, event.target.value);
  else state.where.delete(where);
  changed(setControls, drawCells);
});
$('choices').addEventListener('click', (event) => {
  if (state.where.delete(event.target.dataset.chip)) changed(setControls, drawCells);
});
$('clear').addEventListener('click', () => {
  state.find = '';
  state.where.clear();
  changed(setControls, drawCells);
});
$('columns').addEventListener('change', (event) => {
  const {column} = event.target.dataset;
  if (event.target.checked) state.shown.add(column);
  else state.shown.delete(column);
  changed(drawCells);
});
$('draw').addEventListener('click', () => choose(rows.filter((i) => !lacking.has(i))));
$('undraw').addEventListener('click', () => choose([]));
$('legend').addEventListener('click', (event) => {
  if (event.target.dataset.drop) toggle(Number(event.target.dataset.drop));
});
$('scroll').addEventListener('scroll', () => {
  const {scrollTop, clientHeight, scrollHeight} = $('scroll');
  if (made < rows.length && scrollTop + clientHeight > scrollHeight - 800) drawMore();
});
// An entry of the summary, a failure's cell, a group of machines: its cells come into view.
document.addEventListener('click', (event) => {
  const link = event.target.closest('a[href*="="]');
  if (link && link.getAttribute('href').startsWith('#')) {
    event.preventDefault();
    const kept = {...state, shown: new Set(state.shown), chosen: [...state.chosen]};
    history.pushState(null, '', link.getAttribute('href'));
    readAddress();
    Object.assign(state, kept, {find: state.find, where: state.where});
    changed(setControls, drawCells);
    $('cells').scrollIntoView();
    $('scroll').focus({preventScroll: true});
  }
});
addEventListener('hashchange', follow);
addEventListener('popstate', follow);
let width = innerWidth;
addEventListener('resize', () => {
  if (innerWidth !== width) drawCurves();
  width = innerWidth;
});
// Paper scrolls nowhere and unfolds nothing.
let folded = [];
addEventListener('beforeprint', () => {
  drawMore(rows.length);
  folded = [...document.querySelectorAll('main details:not([open]):not(#chooser)')];
  folded.forEach((details) => { details.open = true; });
});
addEventListener('afterprint', () => folded.forEach((details) => { details.open = false; }));

document.body.classList.remove('js-off');
readAddress();
drawControls();
drawAll();
if (state.where.size || state.find) $('cells').scrollIntoView();
