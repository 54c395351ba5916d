// The table of all cells: which of them, in which order, and as many rows of them as have been scrolled to.
const CONDITION = /^([^<>=!"\s]+)(<=|>=|!=|=|<|>)(.+)$/;
const STEP = 200; // rows that are made at once
let rows = []; // cells that match, in order
let made = 0; // of them, those with a row in the page

function conditions(find) {
  const terms = find.match(/(?:[^\s"]|"[^"]*"?)+/g) || [];
  return terms.map((term) => {
    const plain = term.replaceAll('"', '');
    const [, key, sign, wanted] = plain.match(CONDITION) || [];
    return byKey.has(key) ? condition(byKey.get(key), sign, wanted) : anywhere(plain.toLowerCase());
  });
}

const anywhere = (word) => (i) => columns.some((column) => column.text(i).toLowerCase().includes(word));

function condition(column, sign, wanted) {
  const alternatives = wanted.toLowerCase().split(',');
  const equal = (i) => alternatives.some((word) => (column.number && word !== '' && column.value(i) === Number(word))
    || column.text(i).toLowerCase() === word);
  if (sign === '=') return equal;
  if (sign === '!=') return (i) => !equal(i);
  const bound = Number(wanted);
  const compare = {'<': (v) => v < bound, '>': (v) => v > bound, '<=': (v) => v <= bound, '>=': (v) => v >= bound}[sign];
  return (i) => column.number && column.value(i) !== null && compare(column.value(i));
}

function matching() {
  const tests = conditions(state.find);
  for (const [key, value] of state.where) tests.push((i) => byKey.get(key).text(i) === value);
  const found = [];
  for (let i = 0; i < total; i++) if (tests.every((test) => test(i))) found.push(i);
  return found;
}

// Missing values come last either way; equal ones stay in the order of the summary.
function ordered(found) {
  const column = byKey.get(state.sort);
  if (!column) return found;
  const sign = state.descending ? -1 : 1;
  const there = found.filter((i) => column.rank(i) !== null);
  const missing = found.filter((i) => column.rank(i) === null);
  return there.sort((a, b) => sign * (column.rank(a) - column.rank(b)) || a - b).concat(missing);
}

const shownColumns = () => columns.filter((column) => state.shown.has(column.key));

function drawHead() {
  const head = make('tr', {}, make('th', {scope: 'col', class: 'tick'}, make('span', {class: 'unseen'}, 'curve')));
  for (const column of shownColumns()) {
    const sorted = state.sort === column.key ? (state.descending ? 'descending' : 'ascending') : 'none';
    const button = make('button', {type: 'button', 'data-sort': column.key}, column.key);
    head.append(make('th', {scope: 'col', 'aria-sort': sorted, class: column.number ? null : 'word'}, button));
  }
  document.querySelector('#rows thead').replaceChildren(head);
}

function drawRow(i, shown) {
  const chosen = state.chosen.includes(i);
  const tick = make('input', {type: 'checkbox', 'aria-label': 'curve of ' + label(i), disabled: lacking.has(i)});
  tick.checked = chosen;
  const row = make('tr', {'data-cell': i, class: chosen ? 'chosen' : null}, make('td', {class: 'tick'}, tick));
  for (const column of shown) {
    const value = column.text(i);
    const bad = column.key === 'status' && value !== 'ok';
    const kind = [column.number ? '' : 'word', bad ? 'bad' : ''].filter(Boolean).join(' ') || null;
    const cell = column.key === lineKey ? make('th', {scope: 'row', class: kind}, value) : make('td', {class: kind}, value);
    if (value.length > 24) cell.title = value;
    row.append(cell);
  }
  return row;
}

function drawMore(count = STEP) {
  const shown = shownColumns();
  const more = rows.slice(made, made + count).map((i) => drawRow(i, shown));
  document.querySelector('#rows tbody').append(...more);
  made += more.length;
}

function drawCells() {
  rows = ordered(matching());
  made = 0;
  document.querySelector('#rows tbody').replaceChildren();
  drawHead();
  drawMore();
  $('count').textContent = rows.length === total ? `${total} cell${total === 1 ? '' : 's'}` : `${rows.length} of ${total} cells`;
}

// The filters and the choice of columns, as they stand in the state.
function drawControls() {
  $('find').value = state.find;
  const controls = columns.filter((column) => column.filter).map((column) => {
    const select = make('select', {'data-where': column.key}, make('option', {value: ''}, 'all'));
    const texts = new Set();
    const order = [...Array(total).keys()].filter((i) => column.rank(i) !== null).sort((a, b) => column.rank(a) - column.rank(b));
    order.forEach((i) => texts.add(column.text(i)));
    texts.forEach((value) => select.append(make('option', {value}, value)));
    return make('label', {}, column.key, select);
  });
  $('choices').replaceChildren(...controls);
  $('columns').replaceChildren(...columns.map((column) => {
    const tick = make('input', {type: 'checkbox', 'data-column': column.key});
    return make('label', {}, tick, ' ', column.key);
  }));
}

function setControls() {
  if ($('find').value !== state.find) $('find').value = state.find;
  document.querySelectorAll('[data-chip]').forEach((chip) => chip.remove());
  const selects = new Map([...document.querySelectorAll('[data-where]')].map((select) => [select.dataset.where, select]));
  selects.forEach((select, key) => { select.value = state.where.get(key) || ''; });
  for (const [key, value] of state.where) {
    // A column without a list of choices, or a value that no cell has: a button that takes the condition away.
    if (!selects.has(key) || selects.get(key).value !== value) {
      $('choices').append(make('button', {type: 'button', 'data-chip': key}, `${key} ${value} \u00d7`));
    }
  }
  document.querySelectorAll('[data-column]').forEach((tick) => { tick.checked = state.shown.has(tick.dataset.column); });
  $('clear').disabled = !state.find && !state.where.size;
}
