// Answers side by side that are to be judged. It asks the server for them by the number of their ballot, which it keeps, so that a
// page loaded anew goes on with them; whose answers they are it is told when there is a vote.
const KEPT = 'lora-workbench-ballot', SHEET = 'ballot', PAUSE = 200;
const kept = () => JSON.parse(localStorage.getItem(KEPT) || '{}');
const keep = news => localStorage.setItem(KEPT, JSON.stringify({...kept(), ...news}));
const make = (tag, about = {}, ...inner) => { const one = Object.assign(document.createElement(tag), about); one.append(...inner.filter(part => part != null)); return one; };
const button = (textContent, act, about = {}) => {
  const one = make('button', {type: 'button', className: 'small', textContent, ...about});
  one.addEventListener('click', act);
  return one;
};

const asked = make('div', {className: 'ballot-asked'}), columns = make('div', {className: 'ballot-columns', tabIndex: 0, ariaLabel: 'Answers'});
columns.setAttribute('role', 'group');
const said = make('span', {className: 'ballot-said'});
said.setAttribute('role', 'status');
const tie = button('Tie (T)', () => vote('tie')), bad = button('All bad (B)', () => vote('all bad')), stop = button('Stop', () => call('stop'));
const next = button('Next one (N)', () => call('following', {run: now.run}), {className: 'small primary'});
const prompt = make('textarea', {rows: 1, placeholder: 'Ask all of them something else. Enter sends, Shift+Enter breaks the line.', ariaLabel: 'Next prompt'});
const send = button('Ask', ask, {className: 'small primary'});
const bar = make('div', {className: 'ballot-bar'}, tie, bad, stop, next, said), line = make('div', {className: 'ballot-ask'}, prompt, send);
const host = make('div', {className: 'ballot', tabIndex: -1}, asked, columns, bar, line);
let now = null, drawn = [], timer = null, calls = 0;

function place() {
  const slot = element.querySelector('.ballot-slot');
  if (slot && host.parentElement !== slot) slot.replaceChildren(host);
}

async function call(name, about = {}) {
  const mine = ++calls;
  clearTimeout(timer);
  let answer;
  try {
    answer = await server[name]({ballot: now?.id ?? kept().ballot, ...about});
  } catch (error) {
    if (name === 'look') { timer = setTimeout(() => call('look'), 2000); return; }
    answer = {refused: `The page could not ask for it: ${error.message ?? error}`};
  }
  if (mine !== calls) return;
  if (answer.refused) { say(answer.refused, true); if (now?.writing) timer = setTimeout(() => call('look'), PAUSE); return answer; }
  show(answer);
  return answer;
}

function show(ballot) {
  const another = now?.id !== ballot.id;
  now = ballot;
  keep({ballot: ballot.id});
  place();
  if (another) { begin(); say(''); }
  const over = !ballot.writing, open = over && !ballot.verdict && !ballot.error;
  for (const [at, column] of ballot.columns.entries()) drawn[at].update(column, open);
  host.dataset.open = open ? 'yes' : '';
  [tie.hidden, bad.hidden] = [Boolean(ballot.verdict), Boolean(ballot.verdict)];
  tie.disabled = bad.disabled = !open;
  stop.hidden = over;
  next.hidden = !(ballot.run && (ballot.verdict || ballot.error) && ballot.left);
  line.hidden = Boolean(ballot.run);
  send.disabled = ballot.writing;
  if (ballot.error) say(ballot.error, true);
  else if (ballot.verdict) say(told(ballot));
  else say(ballot.writing ? 'They are answering …' : 'Which one is best? Keys 1 to 8, T, B.');
  if (ballot.writing) timer = setTimeout(() => call('look'), PAUSE);
}

function told(ballot) {
  const which = ballot.verdict === 'best' ? `${ballot.columns[ballot.best].letter} is best` : ballot.verdict === 'tie' ? 'a tie' : 'all bad';
  const rest = ballot.run ? (ballot.left ? `; ${ballot.left} to judge` : '; all of them are judged') : '';
  return `Your vote is kept: ${which}${rest}.`;
}

function begin() {
  asked.replaceChildren(...now.context.map(turn => make('div', {className: 'turn'}, make('b', {textContent: turn.role}), turn.content)),
    make('div', {className: 'turn user'}, make('b', {textContent: now.title}), now.prompt));
  drawn = now.columns.map((_, at) => column(at));
  columns.replaceChildren(...drawn.map(one => one.element));
  columns.scrollLeft = 0;
}

function column(at) {
  const name = make('h3'), rating = make('small'), text = make('div', {className: 'ballot-text said prose'}), end = make('small', {className: 'quiet'});
  const best = button('', () => vote('best', at));
  const whole = make('section', {className: 'ballot-column'}, make('header', {}, name, rating), text, make('div', {className: 'ballot-foot'}, end, best));
  let before = null;
  return {element: whole, update(one, open) {
    name.textContent = one.name ? `${one.letter}: ${one.name}` : one.letter;
    name.title = one.name ?? '';
    whole.setAttribute('aria-label', name.textContent);
    rating.textContent = one.rating ?? '';
    best.textContent = `Best: ${one.letter} (${at + 1})`;
    best.disabled = !open;
    best.hidden = Boolean(now.verdict);
    whole.classList.toggle('won', now.verdict === 'best' && now.best === at);
    end.textContent = {length: 'cut at the most tokens', stopped: 'stopped', error: 'broken off', '': now.writing ? 'answering …' : ''}[one.finish] ?? '';
    if (one.html !== before) text.innerHTML = before = one.html;  // made and escaped by the server
    if (one.finish && !one.html.trim()) text.replaceChildren(make('p', {className: 'quiet', textContent: 'It answered nothing.'}));
  }};
}

function say(sentence, fault = false) { said.textContent = sentence; said.classList.toggle('fault', fault); }
function vote(verdict, best = null) { if (host.dataset.open) call('vote', {verdict, best}); }

async function ask() {
  if (send.disabled) return;
  send.disabled = true;
  const answer = await call('ask_again', {prompt: prompt.value});
  if (!answer || answer.refused) send.disabled = false; else prompt.value = '';
}

prompt.addEventListener('keydown', event => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
});
const isOpen = () => element.isConnected && element.closest('.sheet')?.hasAttribute('data-open');
addEventListener('keydown', event => {
  if (!isOpen() || event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.('input, textarea, select')) return;
  const key = event.key.toLowerCase(), at = Number(key) - 1;
  if (key === 't') vote('tie');
  else if (key === 'b') vote('all bad');
  else if (key === 'n' && !next.hidden) next.click();
  else if (now && at >= 0 && at < now.columns.length) vote('best', at);
  else return;
  event.preventDefault();
});
addEventListener('workbench-sheet', event => { if (element.isConnected && event.detail.key === SHEET && kept().ballot) call('look'); });

function take() {
  place();
  if (!props.value || props.value === kept().taken) return;  // what was given before is not opened once more
  keep({taken: props.value, ballot: JSON.parse(props.value).ballot});
  now = null;
  window.workbench.openSheet(SHEET);
}

// A page loaded anew goes on where it was left.
const open = () => sessionStorage.setItem(KEPT, isOpen() ? 'open' : '');
addEventListener('pagehide', open);
watch('value', take);
take();
if (sessionStorage.getItem(KEPT) === 'open' && kept().ballot) requestAnimationFrame(() => window.workbench.openSheet(SHEET));
