// The rows of a data set: searched, filtered, a page at a time. Gradio tells it which data set as JSON, {name, version, base,
// length}; it fetches the rows by itself when it is seen, adds the chosen row to its value, and triggers `submit` when that changes.
const KEPT = 'lora-workbench-rows';
const make = (tag, about, ...inner) => { const one = Object.assign(document.createElement(tag), about); one.append(...inner.filter(part => part != null)); return one; };
const search = make('input', {type: 'search', placeholder: 'Search the rows', ariaLabel: 'Search the rows'});
const filter = make('select', {ariaLabel: 'Which rows'}, ...fixed.filters.map(one => make('option', {value: one, textContent: one})));
const list = make('div', {className: 'picker-rows', role: 'listbox', ariaLabel: 'Rows', tabIndex: -1});
const said = make('span', {className: 'row-count', role: 'status'}), at = make('input', {type: 'number', min: 1, ariaLabel: 'Page'});
const before = make('button', {type: 'button', className: 'small', textContent: '‹', ariaLabel: 'Page before'});
const after = make('button', {type: 'button', className: 'small', textContent: '›', ariaLabel: 'Next page'});
const pager = make('span', {className: 'row-pager'}, before, at, after);
const host = make('div', {className: 'picker row-picker'}, make('div', {className: 'picker-tools'}, search, filter), list, make('div', {className: 'row-foot'}, said, pager));

let kept = {}, asked = 0, typed = null, fetched = '', told = null;
const about = () => { const {row, ...told} = JSON.parse(props.value || '{}'); return told; };
const seen = () => element.isConnected && window.workbench.seen(host);
const keep = news => { kept = {...kept, ...news}; sessionStorage.setItem(KEPT, JSON.stringify(kept)); };

function recall() {
  kept = JSON.parse(sessionStorage.getItem(KEPT) || '{}');
  // A finding names a row: it is shown among all of them.
  if (kept.find) keep({words: '', shown: fixed.filters[0], page: 1 + Math.floor(kept.row / fixed.most), find: false});
}

function place() {
  const slot = element.querySelector('.row-list-slot');
  if (slot && host.parentElement !== slot) slot.replaceChildren(host);
}

async function update() {
  place();
  if (!seen()) return;
  const now = about();
  if (kept.name !== now.name) keep({name: now.name, words: '', shown: fixed.filters[0], page: 1, row: null});
  if (search.value !== kept.words && document.activeElement !== search) search.value = kept.words;
  filter.value = kept.shown;
  tell(now);
  const question = {...now, words: kept.words, shown: kept.shown, from: (kept.page - 1) * fixed.most};
  if (fetched === JSON.stringify(question)) return;
  const mine = ++asked;
  const answer = now.name ? await server.rows(question).catch(error => { console.warn('The rows could not be fetched.', error); return null; }) : {rows: [], total: 0};
  if (mine !== asked || !answer) return;
  fetched = JSON.stringify(question);
  draw(answer);
}

function tell(now) {
  // Not beside the event: Gradio gives a handler that had to wait what came with the first of its events.
  props.value = JSON.stringify({...now, row: kept.row});
  place();
  // The chosen row is shown anew when the data set, its version, the base or the length is another one.
  const wanted = JSON.stringify([now, kept.row]);
  if (told === wanted || (told === null && kept.row == null)) { told ??= wanted; return; }
  told = wanted;
  trigger('submit');
}

function draw({rows, total}) {
  const pages = Math.max(1, Math.ceil(total / fixed.most));
  if (kept.page > pages) { keep({page: pages}); return update(); }
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.row : null;
  list.replaceChildren(...rows.map(line));
  list.hidden = !rows.length;
  said.textContent = rows.length ? `${total.toLocaleString('en')} rows · page ${kept.page.toLocaleString('en')} of ${pages.toLocaleString('en')}` : 'No rows like that.';
  if (document.activeElement !== at) at.value = kept.page;  // somebody may be typing another
  at.max = pages;
  before.disabled = kept.page <= 1;
  after.disabled = kept.page >= pages;
  pager.hidden = pages < 2;
  mark();
  list.scrollTop = 0;
  list.querySelector('[aria-selected=true]')?.scrollIntoView({block: 'nearest'});
  if (focused != null) list.querySelector(`[data-row="${focused}"]`)?.focus({preventScroll: true});
}

function line(row) {
  const badges = row.findings.map(([text, kind]) => make('span', {className: `state ${kind}`, textContent: text}));
  if (row.part !== 'train' && row.part !== 'error') badges.unshift(make('span', {className: 'state calm', textContent: row.part}));
  const one = make('div', {className: 'picker-row', role: 'option', tabIndex: -1},
    make('span', {className: 'row-number', textContent: row.number}),
    make('span', {className: 'row-said', textContent: row.said}), badges.length ? make('span', {className: 'picker-side'}, ...badges) : null);
  one.dataset.row = row.index;
  return one;
}

function mark() {
  const all = [...list.querySelectorAll('.picker-row')];
  for (const one of all) {
    one.setAttribute('aria-selected', Number(one.dataset.row) === kept.row);
    one.tabIndex = -1;
  }
  const stop = all.find(one => one.getAttribute('aria-selected') === 'true') ?? all[0];
  if (stop) stop.tabIndex = 0;
}

function choose(one) {
  keep({row: Number(one.dataset.row)});
  mark();
  one.focus();
  tell(about());
}

function turnTo(page) {
  if (!(page >= 1)) { at.value = kept.page; return; }
  keep({page: Math.min(Math.round(page), Number(at.max))});
  at.value = kept.page;
  update();
}

list.addEventListener('click', event => { const one = event.target.closest('.picker-row'); if (one) choose(one); });
list.addEventListener('keydown', event => {
  const all = [...list.querySelectorAll('.picker-row')], here = all.indexOf(document.activeElement);
  const to = {ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: all.length - 1, ' ': here, Enter: here}[event.key];
  if (to == null || here < 0) return;
  event.preventDefault();
  choose(all[Math.min(Math.max(to, 0), all.length - 1)]);
});
search.addEventListener('input', () => { clearTimeout(typed); typed = setTimeout(() => { keep({words: search.value, page: 1}); update(); }, 200); });
filter.addEventListener('change', () => { keep({shown: filter.value, page: 1}); update(); });
before.addEventListener('click', () => turnTo(kept.page - 1));
after.addEventListener('click', () => turnTo(kept.page + 1));
at.addEventListener('change', () => turnTo(Number(at.value)));
addEventListener('workbench-row', () => { recall(); update(); });
new ResizeObserver(() => update()).observe(element);
watch('value', update);
recall();
update();
