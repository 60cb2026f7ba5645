// The options of a training: fields under headings, each with its help, what the preset or the default gives, and a mark
// where it was changed. The value is a JSON text of what FormValues reads; Gradio hears of it when it has changed.
const host = document.createElement('div');
host.className = 'options';
const make = (tag, about = {}, ...inner) => {
  const one = document.createElement(tag);
  for (const [key, value] of Object.entries(about)) if (key in one) one[key] = value; else one.setAttribute(key, value);
  one.append(...inner.filter(part => part != null));
  return one;
};
const every = new Map(fixed.groups.flatMap(group => group.options.map(option => [option.name, option])));
const fields = new Map();  // name → {row, read(), write(value), note}
const OPEN = 'lora-workbench-train-open', open = new Set(JSON.parse(localStorage.getItem(OPEN) || '[]'));
const empty = () => ({label: '', given: {}, changed: {}, sweep: {}});
let said = empty(), sent = '', waiting = null, filled = false;

// --- values ------------------------------------------------------------------------------------------------------------
const isNumber = option => option.kind === 'int' || option.kind === 'float';
const plain = (option, value) => option.kind === 'bool' ? String(value === true || value === 'true')
  : isNumber(option) && String(value).trim() !== '' && !Number.isNaN(Number(value)) ? String(Number(value)) : String(value).trim();
const base = option => option.name in said.given ? said.given[option.name] : option.default;
const now = option => option.name in said.changed ? said.changed[option.name] : base(option);
const isChanged = option => option.name in said.changed;
const shown = option => !option.only || plain(every.get(option.only[0]), now(every.get(option.only[0]))) === option.only[1];
const words = (option, value) => {
  const text = option.kind === 'bool' ? (plain(option, value) === 'true' ? 'on' : 'off') : String(value);
  return option.choices.find(([one]) => one === text)?.[1] ?? (text === '' ? 'empty' : text.length > 24 ? `${text.slice(0, 24)}…` : text);
};

function set(option, value) {
  if (plain(option, value) === plain(option, base(option))) delete said.changed[option.name];
  else said.changed[option.name] = value;
}

function fault(option, value) {
  // What the server would refuse, said at once and beside the field.
  if (!isNumber(option)) return '';
  const number = Number(value), wanted = option.kind === 'int' ? 'a whole number' : 'a number';
  if (String(value).trim() === '' || !Number.isFinite(number) || (option.kind === 'int' && !Number.isInteger(number))) return `must be ${wanted}`;
  return (option.minimum != null && number < option.minimum) || (option.maximum != null && number > option.maximum) ? `must be ${option.range}` : '';
}

// --- fields ------------------------------------------------------------------------------------------------------------
function control(option, id) {
  const about = {id, name: option.name, 'aria-describedby': `${id}-help ${id}-note`};
  if (option.kind === 'bool') return make('input', {...about, type: 'checkbox'});
  if (option.choices.length) return make('select', about, ...option.choices.map(([value, text]) => make('option', {value, textContent: text})));
  if (option.lines > 1) return make('textarea', {...about, rows: option.lines});
  return make('input', {...about, type: 'text', inputMode: isNumber(option) ? 'decimal' : 'text', autocomplete: 'off', spellcheck: false});
}

function field(option) {
  const id = `option-${option.name}`, input = control(option, id), check = option.kind === 'bool';
  const label = make('label', {id: `${id}-label`, htmlFor: id, textContent: option.label});
  const note = make('span', {id: `${id}-note`, className: 'option-note'}), help = make('p', {id: `${id}-help`, className: 'option-help', textContent: option.help});
  const box = check ? null : make('span', {className: 'option-box'}, input, option.unit ? make('span', {className: 'option-unit', textContent: option.unit}) : null);
  const row = make('div', {className: `option ${option.lines > 1 ? 'wide' : ''} ${check ? 'check' : ''}`},
    make('div', {className: 'option-head'}, check ? input : null, label, note), box, help);
  row.dataset.option = option.name;
  const read = () => check ? input.checked : input.value;
  const write = value => {
    if (check) input.checked = plain(option, value) === 'true';
    else if (input.value !== String(value) && document.activeElement !== input) input.value = String(value);
    else if (document.activeElement === input && plain(option, input.value) !== plain(option, value)) input.value = String(value);
  };
  input.addEventListener('input', () => { set(option, read()); mark(); commit(check || option.choices.length ? 0 : 300); });
  input.addEventListener('change', () => commit(0));
  return {row, write, note, input, help, label};
}

function special(option) {
  if (option.picker === 'targets') return targetsField(option, field(option));
  return option.several.length ? severalField(option, field(option)) : field(option);
}

function group({subject, options}, folds) {
  const body = make('div', {className: 'option-grid', id: `group-${subject.replaceAll(' ', '-')}`});
  for (const option of options) {
    fields.set(option.name, special(option));
    body.append(fields.get(option.name).row);
  }
  if (!folds) return make('section', {className: 'option-group', 'aria-label': subject}, body);
  return folding(subject, body);
}

function folding(subject, body) {
  const count = make('span', {className: 'option-count'}), about = make('span', {className: 'option-about'});
  const head = make('button', {type: 'button', className: 'option-fold', 'aria-controls': body.id}, make('span', {textContent: subject}), about, count);
  const fold = () => { head.setAttribute('aria-expanded', open.has(subject)); body.hidden = !open.has(subject); };
  head.addEventListener('click', () => {
    open[open.has(subject) ? 'delete' : 'add'](subject);
    localStorage.setItem(OPEN, JSON.stringify([...open]));
    fold();
  });
  fold();
  return Object.assign(make('section', {className: 'option-group folds', 'aria-label': subject}, head, body), {count, about, subject, fold, body});
}

// --- what stands where ----------------------------------------------------------------------------------------------------
const search = make('input', {type: 'search', placeholder: 'Search options', 'aria-label': 'Search options'});
const total = make('span', {className: 'options-total', role: 'status'});
const resetAll = make('button', {type: 'button', className: 'small', textContent: 'Reset all'});
const [common, ...others] = fixed.groups;
const sections = [group(common, false), ...others.map(one => group(one, true))];
const sweep = sweepSection();
const nothing = make('p', {className: 'hint', textContent: 'No option matches.', hidden: true});
host.append(make('div', {className: 'options-tools'}, search, total, resetAll,
  make('button', {type: 'button', className: 'small', textContent: 'Save as a preset …', 'data-opens': 'save-preset'})), make('div', {className: 'options-list', tabIndex: -1}, ...sections, sweep.element, nothing));

resetAll.addEventListener('click', () => { said.changed = {}; write(); commit(0); search.focus(); });
search.addEventListener('input', find);

function find() {
  const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let any = false;
  for (const option of every.values()) {
    const text = `${option.label} ${option.name} ${option.help}`.toLowerCase(), hit = shown(option) && wanted.every(one => text.includes(one));
    fields.get(option.name).row.hidden = !hit;
    any ||= hit;
  }
  for (const section of sections) {
    const rows = [...section.querySelectorAll('.option')], hits = rows.some(row => !row.hidden);
    section.hidden = !hits;
    if (section.fold) { section.fold(); if (wanted.length && hits) section.body.hidden = false; }
  }
  sweep.element.hidden = wanted.length > 0 && !wanted.every(one => 'sweep several values'.includes(one));
  nothing.hidden = any;
}

function mark() {
  for (const option of every.values()) {
    const {row, note, input, help} = fields.get(option.name), changed = isChanged(option), wrong = fault(option, now(option));
    const from = option.name in said.given ? said.label : 'default';
    const was = make('span', {textContent: `${from} ${words(option, base(option))}`});
    const parts = changed ? [make('span', {className: 'dot', textContent: '●', role: 'img', 'aria-label': 'changed'}), was, resetOf(option)] : [was];
    const swept = said.sweep[option.name];
    if (swept) parts.unshift(make('span', {className: 'swept', textContent: `sweep: ${swept.join(', ')}`}));
    const shape = JSON.stringify([changed, from, base(option), swept]);
    if (note.dataset.shape !== shape) { note.dataset.shape = shape; note.replaceChildren(...parts); }
    row.toggleAttribute('data-changed', changed);
    input.setAttribute('aria-invalid', Boolean(wrong));
    const chosen = option.choices.find(([value]) => value === plain(option, now(option)))?.[2];
    const text = wrong ? `${option.label} ${wrong}.` : chosen || option.help;
    if (help.textContent !== text) help.textContent = text;
    help.classList.toggle('fault', Boolean(wrong));
  }
  for (const section of sections.filter(one => one.fold)) {
    const options = fixed.groups.find(one => one.subject === section.subject).options.filter(shown);
    const count = options.filter(isChanged).length, chooser = options.find(one => one.choices.some(([, , help]) => help));
    section.count.textContent = count ? `${count} changed` : '';
    section.about.textContent = chooser ? words(chooser, now(chooser)) : '';
  }
  const count = [...every.values()].filter(one => shown(one) && isChanged(one)).length;
  const text = count ? `${count} changed${said.label ? ` from ${said.label}` : ''}` : said.label ? `As in ${said.label}` : 'All defaults';
  if (total.textContent !== text) total.textContent = text;
  resetAll.disabled = !count;
  sweep.mark();
  find();
}

function resetOf(option) {
  const button = make('button', {type: 'button', className: 'option-reset', title: `Back to ${words(option, base(option))}`, 'aria-label': `Reset to ${words(option, base(option))}`,
    'aria-describedby': `option-${option.name}-label`, textContent: '↺'});
  button.addEventListener('click', () => { delete said.changed[option.name]; fields.get(option.name).write(base(option)); mark(); fields.get(option.name).input.focus(); commit(0); });
  return button;
}

function write() {
  for (const option of every.values()) fields.get(option.name).write(now(option));
  mark();
}

// --- with the page --------------------------------------------------------------------------------------------------------
function place() {
  const slot = element.querySelector('.options-slot');
  if (!slot || host.parentElement === slot) return;
  const focused = host.contains(document.activeElement) ? document.activeElement : null, top = host.lastElementChild.scrollTop;
  slot.replaceChildren(host);
  host.lastElementChild.scrollTop = top;
  focused?.focus({preventScroll: true});
}

function commit(after) {
  clearTimeout(waiting);
  const text = JSON.stringify(said);
  if (text === sent) return;
  if (after) { waiting = setTimeout(commit, after, 0); return; }
  sent = text;
  props.value = text;
  place();
  trigger('submit');
}

function take() {
  place();
  if (!props.value && sent) props.value = sent;  // Gradio sets what it has just laid out to its first value once more
  if (!props.value || props.value === sent) return;
  clearTimeout(waiting);
  const early = filled ? {} : said.changed;  // what was typed before the form was filled stays
  said = {...empty(), ...JSON.parse(props.value)};
  sent = props.value;
  filled = true;
  for (const [name, value] of Object.entries(early)) set(every.get(name), value);
  write();
  if (Object.keys(early).length) commit(0);
  else trigger('submit');
}

addEventListener('workbench-options', event => {
  for (const [name, value] of Object.entries(event.detail)) set(every.get(name), value);
  write();
  commit(0);
});
watch('value', take);
place();
write();
take();
// The form is filled when it is first shown, once Gradio has laid it out.
if (!props.value) requestAnimationFrame(() => requestAnimationFrame(() => { if (!props.value) trigger('focus'); }));
