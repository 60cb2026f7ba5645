// The turns of a row as fields. The value is JSON, {name, version, row, roles, turns: [[role, text], …]}, and follows what is typed; what
// was not saved yet outlives a reload.
const DRAFT = 'lora-workbench-turns';
const make = (tag, about, ...inner) => { const one = Object.assign(document.createElement(tag), about); one.append(...inner); return one; };
const list = make('div', {className: 'turn-fields'});
const add = make('button', {type: 'button', className: 'small', textContent: 'Add a turn'});
const undo = make('button', {type: 'button', className: 'small', textContent: 'Undo the changes'});
const host = make('div', {className: 'turn-editor field'}, list, make('div', {className: 'turn-tools'}, add, undo));
let about = null, given = null;  // what is edited, and the turns as the server gave them
const key = of => JSON.stringify([of.name, of.version, of.row]);

function place() {
  const slot = element.querySelector('.turns-slot');
  if (slot && host.parentElement !== slot) slot.replaceChildren(host);
}

function take() {
  place();
  const now = props.value ? JSON.parse(props.value) : null;
  if (now && about && JSON.stringify(now) === JSON.stringify(about)) return;
  about = now;
  given = now ? JSON.stringify(now.turns) : null;
  const draft = JSON.parse(sessionStorage.getItem(DRAFT) || 'null');
  if (now && draft && draft.key === key(now)) about.turns = draft.turns;
  draw();
  if (now) say(false);
}

function say(typed = true) {
  props.value = JSON.stringify(about);
  place();
  const changed = JSON.stringify(about.turns) !== given;
  undo.hidden = !changed;
  if (!typed) return;
  if (changed) sessionStorage.setItem(DRAFT, JSON.stringify({key: key(about), turns: about.turns})); else sessionStorage.removeItem(DRAFT);
}

function draw() {
  list.replaceChildren(...(about?.turns ?? []).map(fields));
  add.hidden = !about || (about.turns.length === 1 && about.turns[0][0] === 'text');
  undo.hidden = true;
}

function fields([role, text], at) {
  const roles = about.roles.includes(role) ? about.roles : [role, ...about.roles];
  const speaker = make('select', {ariaLabel: `Role of turn ${at + 1}`}, ...roles.map(one => make('option', {value: one, textContent: one})));
  const words = make('textarea', {ariaLabel: `Text of turn ${at + 1}`, value: text, rows: 1});
  const remove = make('button', {type: 'button', className: 'small', textContent: '✕', ariaLabel: `Remove turn ${at + 1}`});
  speaker.value = role;
  speaker.addEventListener('change', () => { about.turns[at][0] = speaker.value; say(); });
  words.addEventListener('input', () => { about.turns[at][1] = words.value; say(); });
  remove.addEventListener('click', () => { about.turns.splice(at, 1); draw(); say(); add.focus(); });
  return make('div', {className: 'turn-field'}, speaker, words, remove);
}

add.addEventListener('click', () => {
  about.turns.push([about.turns.at(-1)?.[0] === 'user' ? 'assistant' : 'user', '']);
  draw();
  say();
  list.lastElementChild.querySelector('textarea').focus();
});
undo.addEventListener('click', () => { about.turns = JSON.parse(given); draw(); say(); });
watch('value', take);
take();
