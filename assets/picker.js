// A list on the left whose chosen row is shown on the right. It fetches its rows by itself, a page at a time, when it is
// opened and when the registry has changed; Gradio hears only of what is chosen.
const host = document.createElement('div');
host.className = 'picker';
host.innerHTML = `
  <div class="picker-tools"><input type="search" aria-label="Search" placeholder="Search"><span class="picker-facets"></span></div>
  <div class="picker-rows" role="listbox" tabindex="-1"></div>
  <div class="picker-foot" role="status"></div>`;
const [search, facetBox, list, foot] = ['input', '.picker-facets', '.picker-rows', '.picker-foot'].map(one => host.querySelector(one));
const section = fixed.section, several = fixed.several;
const keptAs = `lora-workbench-list-${section}`, kept = JSON.parse(sessionStorage.getItem(keptAs) || '{}');
search.placeholder = fixed.search;
search.value = kept.words ?? '';
list.setAttribute('aria-label', fixed.title);
if (several) list.setAttribute('aria-multiselectable', 'true');
const make = (tag, about, ...inner) => { const one = Object.assign(document.createElement(tag), about); one.append(...inner.filter(part => part != null)); return one; };
let rows = [], total = 0, asked = 0, shownAs = '', stale = true, facets = kept.facets ?? {}, folded = new Set(kept.folded ?? []), typed = null, moving = null, focused = null;
let wished = null;  // by the address: Gradio sets what has just been laid out to its first value once more

const chosen = () => String(props.value ?? '').split(several ? ',' : '\u0000').filter(Boolean);
const remember = () => sessionStorage.setItem(keptAs, JSON.stringify({words: search.value, facets, folded: [...folded]}));
const visible = () => element.isConnected && window.workbench.seen(element);

function place() {
  const slot = element.querySelector('.picker-slot');
  if (slot && host.parentElement !== slot) slot.replaceChildren(host);
}

async function fetchRows(more = false) {
  if (!visible()) { stale = true; return; }
  stale = false;
  const mine = ++asked;
  const answer = await server.rows({words: search.value, facets, from: more ? rows.length : 0, most: Math.max(more ? 0 : rows.length, 100)}).catch(error => {
    console.warn('The list could not be fetched; trying again.', error);
    return null;
  });
  if (mine !== asked) return;
  clearTimeout(moving);
  if (!answer) { moving = setTimeout(fetchRows, 3000); return; }
  rows = more ? [...rows, ...answer.rows] : answer.rows;
  total = answer.total;
  drawFacets(answer.facets);
  const now = JSON.stringify([rows, total]);
  if (now !== shownAs) { shownAs = now; draw(); }
  settle();
  if (rows.some(row => row.share != null)) moving = setTimeout(fetchRows, 3000);  // the registry tells of no single step
}

function settle() {
  // Something is always shown where there is something, except on a phone, where the list comes first.
  if (fixed.opensFirst && !chosen().length && rows.length && innerWidth > 700 && window.workbench.route().section === section) pick([rows[0].key]);
}

function pick(keys) {
  const value = keys.join(',');
  if (value === String(props.value ?? '')) return;
  props.value = value;
  place();
  window.workbench.choose(section, value);
  mark();
  trigger('submit');
}

function toggle(key) {
  const now = chosen();
  pick(now.includes(key) ? now.filter(one => one !== key) : [...now, key]);
}

function drawFacets(offered) {
  for (const one of offered) {
    let box = facetBox.querySelector(`[name="${CSS.escape(one.name)}"]`);
    if (!box) {
      box = make('select', {name: one.name, ariaLabel: one.label});
      box.addEventListener('change', () => { facets[one.name] = box.value; remember(); fetchRows(); });
      facetBox.append(box);
    }
    const options = JSON.stringify(one.choices);
    if (box.dataset.options !== options) {
      box.dataset.options = options;
      box.replaceChildren(...one.choices.map(([value, text]) => make('option', {value, textContent: text})));
    }
    box.value = facets[one.name] ?? one.choices[0]?.[0] ?? '';
    if (box.selectedIndex < 0) { box.selectedIndex = 0; facets[one.name] = box.value; }
    box.hidden = one.choices.length < 2;
  }
}

function rowElement(row) {
  const link = make('a', {className: 'picker-row', href: window.workbench.address({section, name: row.key}), tabIndex: -1});
  link.setAttribute('role', 'option');
  link.dataset.key = row.key;
  if (several) link.append(make('span', {className: 'picker-check', title: 'Add to or take from what is chosen'}));
  link.append(make('span', {className: 'picker-text'},
    make('span', {className: 'picker-title'}, row.mark ? make('span', {className: 'picker-mark', textContent: `${row.mark} `}) : null, row.title),
    row.sub ? make('span', {className: 'picker-sub', textContent: row.sub}) : null));
  const side = make('span', {className: 'picker-side'});
  for (const [text, kind] of row.badges ?? []) side.append(make('span', {className: `state ${kind}`, textContent: text}));
  if (row.figure) side.append(make('span', {className: 'picker-figure', textContent: row.figure}));
  if (row.share != null) side.append(make('span', {className: 'bar'}, make('i', {style: `width:${Math.round(100 * row.share)}%`})));
  if (side.childElementCount) link.append(side);
  return link;
}

function draw() {
  const parts = [], groups = new Map();
  for (const row of rows) {
    if (!row.group) { parts.push(rowElement(row)); continue; }
    if (!groups.has(row.group)) {
      const head = make('button', {type: 'button', className: 'picker-group', textContent: row.group, ariaExpanded: !folded.has(row.group)});
      head.dataset.group = row.group;
      groups.set(row.group, make('div', {className: 'picker-members', role: 'group', ariaLabel: row.group, hidden: folded.has(row.group)}));
      parts.push(head, groups.get(row.group));
    }
    groups.get(row.group).append(rowElement(row));
  }
  const top = list.scrollTop;
  list.replaceChildren(...parts);
  list.scrollTop = top;
  const words = search.value.trim() || Object.values(facets).some(Boolean);
  list.hidden = !rows.length;
  facetBox.hidden = search.hidden = !rows.length && !words;
  foot.textContent = rows.length ? (total > rows.length ? `${rows.length.toLocaleString('en')} of ${total.toLocaleString('en')}; scroll for more` : `${total.toLocaleString('en')}`)
    : (words ? 'Nothing matches.' : fixed.nothing);
  foot.classList.toggle('empty', !rows.length);
  mark();
}

function mark() {
  const now = chosen();
  let first = null;
  for (const row of list.querySelectorAll('.picker-row')) {
    const on = now.includes(row.dataset.key);
    row.setAttribute('aria-selected', on);
    row.tabIndex = -1;
    if (on) first ??= row;
  }
  const stop = (focused && [...list.querySelectorAll('.picker-row')].find(one => one.dataset.key === focused)) ?? first ?? list.querySelector('.picker-row');
  if (stop) stop.tabIndex = 0;
  element.closest('.split')?.toggleAttribute('data-chosen', now.length > 0);
}

function takeRoute(now) {
  if (now.section !== section) return;
  if (stale) fetchRows();
  if (now.name && now.name !== String(props.value ?? '')) {
    props.value = wished = now.name;
    place();
    mark();
    trigger('submit');
    list.querySelector('[aria-selected=true]')?.scrollIntoView({block: 'nearest'});
  } else if (!now.name && (innerWidth > 700 || !fixed.opensFirst) && chosen().length) window.workbench.choose(section, String(props.value));
  else if (!now.name && chosen().length) { props.value = ''; mark(); trigger('submit'); }
}

list.addEventListener('click', event => {
  const head = event.target.closest('.picker-group'), row = event.target.closest('.picker-row');
  if (head) {
    folded[folded.has(head.dataset.group) ? 'delete' : 'add'](head.dataset.group);
    remember();
    return draw();
  }
  if (!row || ((event.ctrlKey || event.metaKey) && !several)) return;
  event.preventDefault();
  event.stopPropagation();
  focused = row.dataset.key;
  if (several && (event.ctrlKey || event.metaKey || event.target.closest('.picker-check'))) toggle(row.dataset.key); else pick([row.dataset.key]);
});
list.addEventListener('keydown', event => {
  const all = [...list.querySelectorAll('.picker-row')].filter(window.workbench.seen), at = all.indexOf(document.activeElement);
  const to = {ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1}[event.key];
  if (to != null && at >= 0) {
    event.preventDefault();
    const row = all[Math.min(Math.max(to, 0), all.length - 1)];
    focused = row.dataset.key;
    for (const one of all) one.tabIndex = one === row ? 0 : -1;
    row.focus();
    if (!several || !event.shiftKey) pick([focused]);
  } else if (event.key === ' ' && at >= 0) { event.preventDefault(); if (several) toggle(all[at].dataset.key); else pick([all[at].dataset.key]); }
});
list.addEventListener('scroll', () => {
  if (rows.length < total && list.scrollHeight - list.scrollTop - list.clientHeight < 200 && !list.dataset.more) {
    list.dataset.more = '1';
    fetchRows(true).finally(() => delete list.dataset.more);
  }
});
search.addEventListener('input', () => { clearTimeout(typed); typed = setTimeout(() => { remember(); fetchRows(); }, 150); });
search.addEventListener('keydown', event => {
  if (event.key === 'ArrowDown') { event.preventDefault(); list.querySelector('.picker-row')?.focus(); }
});
addEventListener('workbench-route', event => takeRoute(event.detail));
addEventListener('workbench-changed', () => fetchRows());
addEventListener('workbench-sheet', () => { if (stale || element.closest('.sheet')) fetchRows(); });
for (const act of ['pointerdown', 'keydown']) addEventListener(act, () => { wished = null; }, {capture: true});
watch('value', () => {
  if (wished && !chosen().length) { props.value = wished; trigger('submit'); }
  place();
  window.workbench.choose(section, String(props.value ?? ''));
  mark();
  fetchRows();
});
new MutationObserver(place).observe(element, {childList: true});  // Gradio may write the template anew
new ResizeObserver(() => { if (stale) fetchRows(); }).observe(element);  // Gradio shows a section later than its address is told
place();
takeRoute(window.workbench.route());
fetchRows();
