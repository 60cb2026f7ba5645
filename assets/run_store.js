// What the parts of a run's view share: what run_feed.js has fetched of the runs that they show. Each script of the view
// begins with this one, and finds the store of its name, whichever of them is there first.
const store = (window.workbench.runStores ??= {})[fixed.store] ??= {runs: new Map(), main: null, samples: [], notes: [], marked: null, parts: {}};
const listen = (part, act) => { (store.parts[part] ??= []).push([element, act]); };
function tell(part, about) {
  // A part that Gradio has taken out of the page, and made anew, is there twice.
  store.parts[part] = (store.parts[part] ?? []).filter(([where]) => where.isConnected);
  for (const [, act] of store.parts[part]) act(about);
}
const make = (tag, about = {}, ...inner) => { const one = Object.assign(document.createElement(tag), about); one.append(...inner); return one; };
const dash = value => value == null ? '–' : value;
const duration = seconds => seconds == null ? '–'
  : seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
const active = name => ['queued', 'preparing', 'running', 'pausing'].includes(name);
const lastStep = run => run.points.findLast(one => one[2] != null);
const fresh = () => ({after: 0, points: [], about: {}});
// A name keeps both of its ends, where the names of a sweep differ.
const shortened = (text, most = 36) => text.length <= most ? text : `${text.slice(0, Math.ceil(most / 2) - 1)}…${text.slice(1 - Math.floor(most / 2))}`;

let placing = null;

function intoSlot(host) {
  const slot = element.querySelector('.run-slot');
  if (slot && host.parentElement !== slot) slot.replaceChildren(host);
  // Gradio may write the template anew.
  placing ??= new MutationObserver(() => intoSlot(host)).observe(element, {childList: true}) ?? true;
}
