// The cells as they are embedded in the page, column by column: what a value is, how it reads, how it sorts.
const embedded = (id) => JSON.parse(document.getElementById(id).textContent);
const {columns, styles, curveless} = embedded('cell-data');
const byKey = new Map(columns.map((column) => [column.key, column]));
const natural = new Intl.Collator('en', {numeric: true});
const lacking = new Set(curveless);
let total = 0;

for (const column of columns) {
  column.number = 'values' in column;
  total = (column.values || column.codes).length;
  if (column.number) {
    column.value = (i) => column.values[i];
    column.rank = column.value;
    column.text = (i) => number(column.values[i], column.decimals);
  } else {
    // Words are compared once each, not once a cell.
    const order = column.words.map((_, k) => k).sort((a, b) => natural.compare(column.words[a], column.words[b]));
    const ranks = new Map(order.map((code, place) => [code, place]));
    column.value = (i) => column.words[column.codes[i]] || null;
    column.rank = (i) => (column.value(i) === null ? null : ranks.get(column.codes[i]));
    column.text = (i) => column.words[column.codes[i]];
  }
}

function number(value, decimals) {
  if (value === null || value === undefined) return '';
  if (decimals !== undefined) return value.toFixed(decimals);
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1000 ? String(Math.round(value)) : String(Number(value.toPrecision(4)));
}

const text = (key, i) => (byKey.has(key) ? byKey.get(key).text(i) : '');
const lineKey = byKey.has('line') ? 'line' : 'norm';

function label(i) {
  const parts = [text('block', i), text(lineKey, i)];
  if (text('batch', i)) parts.push('batch ' + text('batch', i));
  if (text('seed', i)) parts.push('seed ' + text('seed', i));
  return parts.filter(Boolean).join(' \u00b7 ') || text('cell_id', i);
}

// An element; every word in it is text, never markup.
function make(tag, attributes = {}, ...children) {
  const svg = ['svg', 'g', 'path', 'line', 'text', 'circle', 'rect'].includes(tag);
  const made = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false && value !== undefined) made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

const $ = (id) => document.getElementById(id);

// What the reader has chosen. The address holds all of it that differs from the beginning.
const state = {find: '', where: new Map(), sort: '', descending: false, shown: new Set(), chosen: [], wanted: 0};
const shownFirst = columns.filter((column) => column.shown).map((column) => column.key);
const MOST = 100; // curves that are drawn at once

function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  state.find = address.get('find') || '';
  state.sort = byKey.has(address.get('sort')) ? address.get('sort') : '';
  state.descending = address.get('order') === 'descending';
  const named = address.getAll('column').filter((key) => byKey.has(key));
  state.shown = new Set(named.length ? named : shownFirst);
  state.where = new Map();
  for (const [name, value] of address) {
    const key = name.slice('where.'.length);
    if (name.startsWith('where.') && byKey.has(key)) state.where.set(key, value);
  }
  const ids = new Map();
  for (let i = total - 1; i >= 0; i--) ids.set(text('cell_id', i), i);
  state.wanted = 0;
  state.chosen = address.getAll('curve').filter((id) => ids.has(id)).map((id) => ids.get(id)).slice(0, MOST);
}

function writeAddress() {
  const address = new URLSearchParams();
  if (state.find) address.set('find', state.find);
  for (const [key, value] of state.where) address.set('where.' + key, value);
  if (state.sort) address.set('sort', state.sort);
  if (state.sort && state.descending) address.set('order', 'descending');
  const named = columns.map((column) => column.key).filter((key) => state.shown.has(key));
  if (named.join('\n') !== shownFirst.join('\n')) named.forEach((key) => address.append('column', key));
  state.chosen.forEach((i) => address.append('curve', text('cell_id', i)));
  history.replaceState(null, '', '#' + address);
}
