// A field that finds one thing among thousands: it asks the server for what matches, and shows it below. With `several` each
// chosen one gets a line with its weight; the value is then JSON, a list of names and weights.
const {several, label, opensWith} = fixed, keptAs = `lora-workbench-choice-${fixed.kept}`;
const make = (tag, about, ...inner) => { const one = Object.assign(document.createElement(tag), about); one.append(...inner); return one; };
const id = `choice-${fixed.kept}`;
const input = make('input', {type: 'text', autocomplete: 'off', placeholder: fixed.placeholder, id: `${id}-input`});
const popup = make('ul', {id, className: 'choice-popup', role: 'listbox', ariaLabel: label, hidden: true});
const lines = make('div', {className: 'choice-lines'});
const host = make('div', {className: 'choice field'}, make('label', {htmlFor: input.id, textContent: label}), ...(several ? [lines] : []),
  make('div', {className: 'choice-box'}, input, popup), make('p', {className: 'hint', textContent: fixed.help, hidden: !fixed.help}));
for (const [name, value] of [['role', 'combobox'], ['aria-autocomplete', 'list'], ['aria-expanded', 'false'], ['aria-controls', id]]) input.setAttribute(name, value);
let offered = [], at = -1, asked = 0, rows = [], touched = false;

const valueOf = () => several ? (rows.length ? JSON.stringify(rows) : '') : String(props.value ?? '');
function place() {
  const slot = element.querySelector('.choice-slot');
  if (slot && host.parentElement !== slot) slot.replaceChildren(host);
}

function set(value) {
  props.value = value;
  sessionStorage.setItem(keptAs, value);
  place();
  trigger('submit');
}

function show() {
  place();
  if (!several) { if (document.activeElement !== input || popup.hidden) input.value = String(props.value ?? ''); return; }
  rows = JSON.parse(props.value || '[]');
  drawLines();
}

async function offer(words) {
  const mine = ++asked;
  const found = await server.offer({...window.workbench.route(), words, taken: rows.map(row => row.name)}).catch(error => {
    console.warn('What can be chosen could not be fetched.', error);
    return [];
  });
  if (mine !== asked || document.activeElement !== input) return;
  offered = found;
  at = words && found.length ? 0 : -1;
  drawPopup();
}

function drawPopup() {
  popup.replaceChildren(...(offered.length ? offered.map(([name, about], number) => {
    const one = make('li', {id: `${id}-${number}`, role: 'option', ariaSelected: number === at}, make('span', {textContent: name}), make('small', {textContent: about}));
    one.dataset.name = name;
    return one;
  }) : [make('li', {role: 'option', ariaDisabled: true, className: 'none', textContent: 'Nothing matches.'})]));
  popup.hidden = false;
  input.setAttribute('aria-expanded', 'true');
  if (at >= 0) input.setAttribute('aria-activedescendant', `${id}-${at}`); else input.removeAttribute('aria-activedescendant');
  popup.querySelector('[aria-selected=true]')?.scrollIntoView({block: 'nearest'});
}

function close() {
  asked++;
  popup.hidden = true;
  input.setAttribute('aria-expanded', 'false');
  input.removeAttribute('aria-activedescendant');
}

function pick(name) {
  close();
  if (!several) { set(name); show(); return; }
  input.value = '';
  if (rows.some(row => row.name === name)) return;
  rows.push({name, weight: 1});
  changed();
}

function changed() {
  // All the same, adding up to 1, until somebody says otherwise.
  if (!touched) for (const row of rows) row.weight = 1 / rows.length;
  drawLines();
  set(valueOf());
}

function drawLines() {
  lines.replaceChildren(...rows.map(row => {
    const range = make('input', {type: 'range', min: -1, max: 2, step: 0.05, value: row.weight, ariaLabel: `Weight of ${row.name}, to slide`});
    const number = make('input', {type: 'number', step: 'any', value: Number(row.weight.toFixed(4)), ariaLabel: `Weight of ${row.name}`});
    const out = make('button', {type: 'button', className: 'small', textContent: '✕', ariaLabel: `Take ${row.name} out`});
    const weigh = value => {
      if (!Number.isFinite(value)) return;
      [row.weight, touched] = [value, true];
      set(valueOf());
    };
    range.addEventListener('input', () => { number.value = range.value; });
    range.addEventListener('change', () => weigh(range.valueAsNumber));
    number.addEventListener('change', () => { range.value = number.value; weigh(number.valueAsNumber); });
    out.addEventListener('click', () => { rows = rows.filter(one => one !== row); changed(); input.focus(); });
    return make('div', {className: 'choice-line'}, make('span', {className: 'choice-name', textContent: row.name, title: row.name}), range, number, out);
  }));
  lines.hidden = !rows.length;
}

input.addEventListener('focus', () => input.select());
input.addEventListener('click', () => { if (popup.hidden) offer(''); });
input.addEventListener('input', () => offer(input.value));
input.addEventListener('blur', () => {
  close();
  const typed = input.value.trim();
  if (several) { input.value = ''; return; }  // lines drawn anew would take the focus from the one that was clicked
  if (!typed && props.value && fixed.optional) set('');
  else if (typed !== String(props.value ?? '') && offered.some(([name]) => name === typed)) set(typed);
  show();
});
input.addEventListener('keydown', event => {
  const by = {ArrowDown: 1, ArrowUp: -1}[event.key];
  if (by && !popup.hidden && offered.length) { event.preventDefault(); at = (at + by + offered.length) % offered.length; drawPopup(); }
  else if (by) { event.preventDefault(); offer(''); }
  else if (event.key === 'Enter' && !popup.hidden && at >= 0) { event.preventDefault(); pick(offered[at][0]); }
  else if (event.key === 'Escape' && !popup.hidden) { event.preventDefault(); close(); show(); }
});
popup.addEventListener('mousedown', event => event.preventDefault());
popup.addEventListener('click', event => { const one = event.target.closest('[data-name]'); if (one) pick(one.dataset.name); });
if (opensWith) addEventListener('workbench-sheet', event => {
  const now = window.workbench.route();
  if (event.detail.key === opensWith && !valueOf() && now.section === fixed.section && now.name) pick(now.name);
});
// Gradio sets what has just been laid out to its first value once more: what was kept counts until somebody acts.
let restored = sessionStorage.getItem(keptAs);
for (const act of ['pointerdown', 'keydown']) addEventListener(act, () => { restored = null; }, {capture: true});
function restore() {
  if (restored && !props.value) { props.value = restored; touched = several; }
  sessionStorage.setItem(keptAs, String(props.value ?? ''));
  show();
}
watch('value', restore);
restore();
