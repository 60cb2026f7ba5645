// A conversation in columns, one for each speaker. The value says which conversation and which columns: JSON {chat, columns}. The panel
// asks for what is new by itself, often while anything grows; what is to be done with a message is told by `submit`,
// a question from the line below by `input`.
const make = (tag, about, ...inner) => { const one = Object.assign(document.createElement(tag), about); one.append(...inner.filter(part => part != null)); return one; };
const KEPT = 'lora-workbench-talk', DRAFT = 'lora-workbench-draft', BUSY_MS = 180, IDLE_MS = 5000;
const tools = make('div', {className: 'talk-tools'}), others = make('span', {className: 'talk-others'});
const against = make('select', {ariaLabel: 'Show the differences from'});
const together = make('input', {type: 'checkbox'});
const columns = make('div', {className: 'chats'}), host = make('div', {className: 'talk'}, tools, columns);
const kept = JSON.parse(localStorage.getItem(KEPT) || '{}');
together.checked = kept.together ?? true;
const compare = make('label', {}, 'Differences from ', against), scrolls = make('label', {}, together, ' Scroll together');
tools.append(others, compare, scrolls);

let known = {}, cells = {}, shown = new Map(), drawnFor = '', busy = false, timer = null, asking = false, again = false, added = [], last = null, editing = null;
const about = () => JSON.parse(props.value || '{"chat": 0, "columns": []}');
const wanted = () => { const {columns} = about(); return [...columns, ...added.filter(one => !columns.includes(one))]; };

function place() {
  const slot = element.querySelector('.talk-slot');
  if (slot && host.parentElement !== slot) slot.replaceChildren(host);
}

function follow() {
  place();
  const now = JSON.stringify([about().chat, wanted(), against.value]);
  if (now !== drawnFor) {
    if (about().chat !== last?.chat) { added = []; editing = null; }
    drawnFor = now;
    [known, cells] = [{}, {}];
    layOut();
  }
  look();
}

async function look() {
  clearTimeout(timer);
  if (asking) { again = true; return; }
  if (!element.isConnected || !window.workbench.seen(host)) { timer = setTimeout(look, IDLE_MS); return; }
  keepDraft();
  asking = true;
  const began = performance.now(), {chat} = about(), mine = drawnFor;
  const reference = against.value === '' ? null : against.value.slice(1);
  const answer = await server.look({chat, columns: wanted(), known, against: reference}).catch(error => { console.warn('The conversation could not be fetched.', error); return null; });
  asking = false;
  if (answer && mine === drawnFor) draw({...answer, chat});
  if (again) { again = false; return look(); }
  timer = setTimeout(look, busy ? Math.max(BUSY_MS, 3 * (performance.now() - began)) : IDLE_MS);
}

function layOut() {
  // Who was at the end stays there: among other columns the same words are higher.
  const before = new Map([...shown].map(([speaker, {log}]) => [speaker, endOf(log) ? null : log.scrollTop]));
  shown = new Map();
  columns.replaceChildren(...wanted().map(speaker => {
    const heading = make('h2', {textContent: speaker || 'Plain base'}), weights = make('small', {className: 'talk-weights'});
    const log = make('div', {className: 'talk-log', role: 'log', tabIndex: 0, ariaLabel: `What ${speaker || 'the plain base'} says`});
    log.addEventListener('scroll', () => scrolled(log));
    shown.set(speaker, {heading, weights, log, top: before.get(speaker)});
    return make('section', {className: 'talk-column'}, make('header', {}, heading, weights), log);
  }));
  const value = against.value, several = shown.size > 1;
  against.replaceChildren(make('option', {value: '', textContent: 'nobody'}), ...wanted().map(one => make('option', {value: `@${one}`, textContent: one || 'Plain base'})));
  against.value = several && shown.has(value.slice(1)) ? value : '';
  compare.hidden = scrolls.hidden = !several;
  showMixture();
}

// Beside the open sheet that weighs a mixture there is room for few columns: its own is to be in view.
function showMixture() {
  const mixture = [...shown.keys()].filter(speaker => speaker.includes('=')).at(-1);
  if (mixture && document.querySelector('#sheet-blend[data-open]')) shown.get(mixture).log.parentElement.scrollIntoView({block: 'nearest', inline: 'nearest'});
}

function draw(answer) {
  const first = last?.chat !== answer.chat;
  last = answer;
  for (const one of answer.columns) {
    const parts = shown.get(one.speaker);
    if (!parts) continue;
    parts.heading.textContent = one.name;
    parts.log.ariaLabel = `What ${one.speaker ? one.name : 'the plain base'} says`;
    drawColumn(one.speaker, parts, answer.turns, first);
  }
  drawOthers(answer.others);
  if (busy !== answer.busy) { busy = answer.busy; columns.ariaBusy = busy; trigger('submit', {do: busy ? 'busy' : 'idle'}); }
}

const endOf = log => log.scrollHeight - log.scrollTop - log.clientHeight < 40;

function drawColumn(speaker, parts, turns, first) {
  const atEnd = first || endOf(parts.log);
  const wantedNodes = [];
  for (const turn of turns) {
    const answer = turn.answers[speaker], key = `${speaker}\u0000${turn.id}`;
    const cell = cells[key] ??= newCell();
    if (cell.asked !== turn.question) { cell.asked = turn.question; cell.words.textContent = turn.question; }
    cell.id = turn.id;
    cell.answer.hidden = !answer;
    if (answer) fill(cell, answer, turn, speaker);
    wantedNodes.push(cell.question, answer || turn !== turns.at(-1) ? cell.answer : cell.missing);
    cell.speaker = speaker;
  }
  if (!wantedNodes.length) wantedNodes.push(parts.empty ??= make('p', {className: 'talk-empty', textContent: 'Nothing was asked yet.'}));
  if (wantedNodes.length !== parts.log.children.length || wantedNodes.some((one, at) => parts.log.children[at] !== one)) parts.log.replaceChildren(...wantedNodes);
  const newest = turns.map(turn => cells[`${speaker}\u0000${turn.id}`]?.weights).filter(Boolean).at(-1) ?? '';
  if (parts.weights.textContent !== newest) { parts.weights.textContent = newest; parts.weights.title = newest; }
  if (parts.top != null) { parts.log.scrollTop = parts.top; parts.top = null; } else if (atEnd) parts.log.scrollTop = parts.log.scrollHeight;
}

function newCell() {
  const words = make('div', {className: 'said', dir: 'auto'}), edit = small('Edit', 'edit', 'Ask something else in its place, in a new conversation');
  const text = make('div', {className: 'said prose', dir: 'auto'}), figures = make('span', {className: 'talk-figures'}), fault = make('p', {className: 'fault', role: 'alert', hidden: true});
  const stop = small('Stop', 'stop', 'End this answer'), anew = small('Again', 'again', 'Have it answered again, in its place; by the next seed if nothing else is asked for');
  const adopt = small('Go on from this', 'adopt', 'All columns go on from this answer');
  const tokens = small('Tokens', 'tokens', 'How likely each token was, and how far the base was moved');
  const copy = small('Copy', 'copy', 'Copy it as it was written'), row = small('To data', 'row', 'Keep question and answer as a row of a data set');
  const buttons = make('span', {className: 'talk-buttons'}, stop, anew, adopt, tokens, copy, row);
  const missing = small('Answer this too', 'also', 'Have this column answer the last question');
  return {words, text, figures, fault, stop, anew, adopt, tokens, buttons, missing, asked: null, stamp: null, weights: '',
    question: make('article', {className: 'message user'}, words, edit),
    answer: make('article', {className: 'message bot'}, text, fault, make('div', {className: 'talk-foot'}, figures, buttons))};
}

const small = (textContent, what, title) => { const one = make('button', {type: 'button', className: 'small', textContent, title}); one.dataset.do = what; return one; };

function fill(cell, answer, turn, speaker) {
  cell.answerId = answer.id;
  const adopted = turn.adopted === speaker;
  cell.adopt.setAttribute('aria-pressed', adopted);
  cell.answer.classList.toggle('adopted', adopted);
  if (answer.html == null || cell.stamp === answer.stamp) return;
  cell.stamp = known[answer.id] = answer.stamp;
  cell.raw = answer.text;
  const open = cell.text.querySelector('details')?.open;
  cell.text.innerHTML = cell.plain = answer.html;
  cell.tokens.setAttribute('aria-pressed', false);
  const fold = cell.text.querySelector('details');
  if (fold && open != null) fold.open = open;
  cell.figures.textContent = answer.said;
  cell.weights = answer.weights;
  cell.fault.hidden = !answer.error;
  cell.fault.textContent = answer.error;
  const grows = !answer.finish;
  cell.answer.classList.toggle('grows-now', grows);
  cell.stop.hidden = !grows;
  for (const one of cell.buttons.children) if (one !== cell.stop) one.hidden = grows || (one !== cell.anew && !answer.text);
}

function drawOthers(list) {
  const now = JSON.stringify(list);
  if (others.dataset.now === now) return;
  others.dataset.now = now;
  others.replaceChildren(...(list.length ? ['Answered too: ', ...list.map(one => {
    const button = make('button', {type: 'button', className: 'small', textContent: one.name, title: 'Show its column'});
    button.addEventListener('click', () => { added.push(one.speaker); follow(); });
    return button;
  })] : []));
}

function scrolled(log) {
  if (!together.checked || log.dataset.following) { delete log.dataset.following; return; }
  const room = log.scrollHeight - log.clientHeight, share = room > 0 ? log.scrollTop / room : 1;
  for (const {log: other} of shown.values()) {
    if (other === log) continue;
    const to = Math.round(share * (other.scrollHeight - other.clientHeight));
    if (Math.abs(other.scrollTop - to) > 1) { other.dataset.following = 1; other.scrollTop = to; }
  }
}

columns.addEventListener('click', event => {
  const button = event.target.closest('[data-do]');
  if (!button) return;
  const cell = Object.values(cells).find(one => one.question.contains(button) || one.answer.contains(button) || one.missing === button), what = button.dataset.do;
  if (what === 'copy') return copy(cell.raw, button);
  if (what === 'edit') return edit(cell);
  if (what === 'tokens') return showTokens(cell, button);
  if (what === 'also') { cell.missing.disabled = true; return trigger('submit', {do: 'also', message: cell.id, speaker: cell.speaker}); }
  if (what === 'row') window.workbench.openSheet('keep-row');
  trigger('submit', {do: what, message: cell.answerId});
});

async function showTokens(cell, button) {
  const on = button.getAttribute('aria-pressed') === 'true';
  button.setAttribute('aria-pressed', !on);
  if (on) { cell.text.innerHTML = cell.plain; return; }
  button.disabled = true;
  const found = await server.tokens({message: cell.answerId}).catch(error => ({error: String(error)}));
  button.disabled = false;
  if (button.getAttribute('aria-pressed') !== 'true') return;
  if (found.error) { button.setAttribute('aria-pressed', false); cell.fault.textContent = found.error; cell.fault.hidden = false; return; }
  cell.text.innerHTML = found.html;
}

async function copy(text, button) {
  try { await navigator.clipboard.writeText(text); button.textContent = 'Copied'; }
  catch { getSelection().selectAllChildren(button.closest('.message').querySelector('.said')); button.textContent = 'Press Ctrl+C'; }
  setTimeout(() => { button.textContent = 'Copy'; }, 2500);
}

function edit(cell) {
  if (editing) return editing.field.focus();
  const field = make('textarea', {value: cell.asked, ariaLabel: 'The question anew', rows: 2});
  const ask = make('button', {type: 'button', className: 'small', textContent: 'Ask in a new branch'}), leave = make('button', {type: 'button', className: 'small', textContent: 'Leave it'});
  const form = make('div', {className: 'talk-edit'}, field, make('span', {className: 'talk-buttons'}, ask, leave));
  editing = {field};
  const end = () => { form.replaceWith(cell.question); editing = null; };
  leave.addEventListener('click', () => { end(); look(); });
  ask.addEventListener('click', () => { const prompt = field.value; end(); trigger('submit', {do: 'branch', message: cell.id, prompt}); });
  field.addEventListener('keydown', event => { if (event.key === 'Escape') { event.stopPropagation(); end(); } });
  cell.question.replaceWith(form);
  field.focus();
}

// The line below: what is half typed outlives a reload, and ↑ in an empty line brings the last question back.
const line = () => document.querySelector('#prompt textarea');
function write(text) {
  const field = line();
  field.value = text;
  field.dispatchEvent(new Event('input', {bubbles: true}));
  keep();
}
const questions = [];  // the first is on its way; each goes on from where the one before has led
const keep = () => localStorage.setItem(DRAFT, line().value || questions.join('\n'));  // what was not heard is not lost
function take() {
  const question = line().value;
  if (questions.length && !question.trim()) return;  // sent twice
  questions.push(question);
  write('');
  if (questions.length === 1) trigger('input', {prompt: question});
}
addEventListener('workbench-asked', ({detail: heard}) => {
  const done = questions.splice(0, heard ? 1 : questions.length);
  if (!heard && !line().value) write(done.join('\n'));
  keep();
  if (questions.length) trigger('input', {prompt: questions[0]});
});
addEventListener('click', event => { if (event.target.closest?.('#send-question')) take(); });
// What is told stands above it, however many lines it has: at the end of the columns, while these are seen.
new ResizeObserver(() => {
  const below = window.workbench.seen(host) ? innerHeight - host.getBoundingClientRect().bottom : 0;
  document.documentElement.style.setProperty('--foot', `${Math.max(0, below)}px`);
}).observe(host);
addEventListener('input', event => { if (event.target === line() && event.isTrusted) keep(); });
addEventListener('keydown', event => {
  if (event.target !== line()) return;
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); event.stopPropagation(); take(); }
  if (event.key === 'ArrowUp' && !event.target.value && last?.turns.length) { event.preventDefault(); write(last.turns.at(-1).question); }
}, {capture: true});
// Gradio sets what has just been laid out to its first value once more: what was kept counts until it stands, or somebody acts.
let draft = localStorage.getItem(DRAFT) || '';
for (const act of ['pointerdown', 'keydown']) addEventListener(act, event => { if (event.target === line()) draft = ''; }, {capture: true});
function keepDraft() {
  const field = line();
  if (!field || !window.workbench.seen(field)) return;
  if (!draft || field.value === draft) { draft = ''; keep(); } else if (!field.value) { write(draft); setTimeout(keepDraft, 400); }
}

against.addEventListener('change', follow);
together.addEventListener('change', () => localStorage.setItem(KEPT, JSON.stringify({together: together.checked})));
addEventListener('workbench-sheet', showMixture);
addEventListener('workbench-route', () => requestAnimationFrame(look));
addEventListener('visibilitychange', () => { if (!document.hidden) look(); });
watch('value', follow);
follow();
