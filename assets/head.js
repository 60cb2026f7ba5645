// The masthead and what is under way look for news by themselves. Gradio hears of it only when the registry has changed: each
// of its events walks all components of the page, which would cost a tenth of a processor core for nothing. The lists hear of
// it here, and ask for their own rows. A page out of sight asks now and then, for its title, its icon and notifications.
let seen = '', followed = [], timer = null, asking = false;
const away = new Set(JSON.parse(localStorage.getItem('lora-workbench-away') || '[]'));

// What is shown stands in an element of our own: Gradio may draw what it was given before once more.
const host = document.createElement('div'), answers = Object.assign(document.createElement('div'), {className: 'activity'});
let shown = null;

function show(html) {
  const slot = element.querySelector('.head-slot');
  if (slot && host.parentElement !== slot) slot.replaceChildren(host, answers);
  if (html === shown) return;
  shown = html;
  const at = host.querySelector('.activity')?.scrollTop;
  host.innerHTML = html;
  for (const one of host.querySelectorAll('[data-notice]')) if (away.has(one.dataset.notice)) one.remove();
  fold();
  host.querySelector('.activity').scrollTop = at ?? 0;
}

// Of what has ended the newest is in sight, all others are counted, and a click away: the page below keeps its place.
let unfolded = false;
function fold() {
  const list = host.querySelector('.notices'), notices = list ? [...list.querySelectorAll('.notice')] : [];
  const rest = notices.slice(1), counts = {};
  list?.replaceChildren(...notices);
  if (!rest.length) return;
  for (const one of rest) { const state = one.querySelector('.state').textContent; counts[state] = (counts[state] ?? 0) + 1; }
  const said = Object.entries(counts).map(([state, count]) => `${count} ${state}`).join(', ');
  const more = Object.assign(document.createElement('details'), {open: unfolded});
  const summary = Object.assign(document.createElement('summary'), {textContent: `${rest.length} more: ${said}`});
  const all = Object.assign(document.createElement('button'), {type: 'button', className: 'small', textContent: 'Put all away'});
  all.addEventListener('click', () => putAway([...list.querySelectorAll('.notice')]));
  summary.classList.toggle('bad', rest.some(one => one.matches('.bad')));
  more.addEventListener('toggle', () => { unfolded = more.open; });
  more.append(summary, all, ...rest);
  list.append(more);
}

function putAway(notices) {
  for (const one of notices) { away.add(one.dataset.notice); one.remove(); }
  localStorage.setItem('lora-workbench-away', JSON.stringify([...away].slice(-500)));
  fold();
}

// Where a job was started, such as in a sheet, which covers what is shown here, its line goes along.
function follow() {
  for (const button of document.querySelectorAll('.job-here [data-end]')) {
    const from = host.querySelector(`[data-end="${button.dataset.end}"]`)?.closest('.job'), to = button.closest('.job');
    for (const part of from ? ['.quiet', '.bar', '.job-share'] : []) {
      const now = from.querySelector(part), then = to.querySelector(part);
      if (now.outerHTML !== then.outerHTML) then.replaceWith(now.cloneNode(true));
    }
  }
}

async function ask() {
  clearTimeout(timer);
  const inSight = document.visibilityState === 'visible';
  let pause = inSight ? 1000 : 5000;
  if (!asking) {
    asking = true;
    try {
      const now = await server.news({seen, followed});
      followed = now.active;
      dispatchEvent(new CustomEvent('workbench-news', {detail: now}));
      if (inSight) { show(now.html); follow(); }
      if (inSight && now.changes) {
        seen = now.changes;
        trigger('submit');
        dispatchEvent(new CustomEvent('workbench-changed'));
      }
    } catch (error) {
      console.warn('The page could not ask for news; trying again.', error);
      pause = 4000;
    }
    asking = false;
  }
  timer = setTimeout(ask, pause);
}

function say(sentence) {
  const line = Object.assign(document.createElement('div'), {className: 'notice said', textContent: sentence});
  line.setAttribute('role', 'status');
  answers.prepend(line);
  setTimeout(() => line.remove(), 8000);
}

document.addEventListener('click', async event => {
  const end = event.target.closest?.('[data-end]'), dismiss = event.target.closest?.('[data-dismiss]');
  if (dismiss) putAway([dismiss.closest('[data-notice]')]);
  if (!end || end.disabled) return;
  end.disabled = true;
  const sentence = await server.end(end.dataset.end).catch(error => `The page could not ask for it: ${error.message ?? error}`);
  await ask();
  say(sentence);
});

document.addEventListener('visibilitychange', ask);
ask();
