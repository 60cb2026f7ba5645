// The log of the run, with its alerts, changes and states.
const host = make('div', {className: 'run-panels'});
host.innerHTML = `
  <div class="log-tools"><input type="search" placeholder="Search the log" aria-label="Search the log">
    <select aria-label="Kind of line"><option value="">Everything</option><option value="alert">Alerts</option><option value="change">Changes</option><option value="state">States</option></select></div>
  <ul class="log" aria-label="Log of the run" tabindex="0"></ul>`;
const [search, kind, list] = ['input', 'select', 'ul'].map(one => host.querySelector(one));

function show() {
  intoSlot(host);
  const wanted = search.value.trim().toLowerCase(), end = list.scrollHeight - list.scrollTop - list.clientHeight < 30;
  const found = store.notes.filter(one => (!kind.value || one[2] === kind.value) && (!wanted || one[3].toLowerCase().includes(wanted) || one[2] === wanted));
  const today = new Date().toDateString(), said = at => at.toDateString() === today ? at.toLocaleTimeString([], {hour12: false}) : at.toLocaleString([], {dateStyle: 'short', timeStyle: 'medium', hour12: false});
  list.replaceChildren(...found.map(one => make('li', {className: `kind-${one[2]}`}, make('time', {textContent: said(new Date(one[1] * 1000))}), one[3])));
  if (!found.length) list.append(make('li', {className: 'quiet', textContent: store.notes.length ? 'Nothing in the log is like this.' : 'Nothing has been said yet.'}));
  if (end) list.scrollTop = list.scrollHeight;
}

search.addEventListener('input', show);
kind.addEventListener('change', show);
listen('log', show);
show();
