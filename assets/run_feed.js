// The head of a run's view: its name, state and progress. It fetches what is new for all parts of the view, by itself, so a
// lost tick, a reload or a second tab can never leave a gap in them.
const WORDS = {queued: 'Waiting', preparing: 'Preparing', running: 'Running', pausing: 'Pausing', finished: 'Finished', stopped: 'Stopped',
  paused: 'Paused', failed: 'Failed', interrupted: 'Interrupted'};
const DOING = {queued: 'It starts when those before it are done.', preparing: 'Loading the base model and reading the data.', pausing: 'Saving where it stands.'};
const KINDS = {finished: 'good', failed: 'bad', interrupted: 'bad', stopped: 'calm', paused: 'calm'};

const host = make('div', {className: 'run-head'});
host.innerHTML = `
  <a class="go all-runs" href="?section=runs&name=">‹ All runs</a>
  <div class="title-line"><h2></h2><span class="curve-state" role="status"></span></div>
  <div class="run-progress" hidden><span class="bar"><i></i></span><span class="run-step"></span></div>
  <div class="empty" hidden></div>`;
const [name, state, progress, step, nothing] = ['h2', '.curve-state', '.run-progress', '.run-step', '.empty'].map(one => host.querySelector(one));
let timer = null, asking = false, again = false, shownAs = '';

function describe() {
  const several = store.runs.size > 1, run = store.runs.get(store.main), about = run?.about ?? {};
  nothing.hidden = store.runs.size > 0;
  nothing.textContent = 'Choose a run on the left, or several to compare them.';
  for (const one of [name.parentElement, progress]) one.hidden = !store.runs.size;
  if (!store.runs.size) return;
  const all = [...store.runs.values()], now = JSON.stringify([several, store.main, all.map(one => [one.about.name, one.about.state, one.about.reason])]);
  if (now !== shownAs) {
    shownAs = now;
    name.textContent = several ? `${store.runs.size} runs side by side` : about.name || (about.gone ? `Run ${store.main} is not here any more` : '');
    state.replaceChildren(...(several ? counted(all) : about.state ? worded(about) : []));
  }
  showProgress(several ? null : run, about);
}

function worded(about) {
  const said = about.reason || DOING[about.state] || '';
  return [make('span', {className: `state ${KINDS[about.state] || 'busy'}`, textContent: WORDS[about.state] ?? about.state}), make('span', {className: 'run-reason', textContent: said ? ` ${said}` : ''})];
}

function counted(all) {
  const found = Map.groupBy ? Map.groupBy(all, one => one.about.state) : new Map(all.map(one => [one.about.state, all.filter(other => other.about.state === one.about.state)]));
  return [...found].filter(([word]) => word).map(([word, those]) => make('span', {className: `state ${KINDS[word] || 'busy'}`, textContent: `${those.length} ${(WORDS[word] ?? word).toLowerCase()}`}));
}

function showProgress(run, about) {
  const p = run && lastStep(run), total = about.total_steps, done = p?.[1] ?? 0;
  const comes = about.more && !active(about.state);  // what it has measured is still on its way here
  progress.hidden = !run || !(active(about.state) || (total && done < total)) || about.gone || comes;
  if (progress.hidden) return;
  const share = total ? Math.min(1, done / total) : 0, left = about.state === 'running' && p ? p[8] : null;
  progress.firstElementChild.classList.toggle('unknown', about.state === 'preparing');
  progress.firstElementChild.firstElementChild.style.width = `${100 * share}%`;
  const ends = left == null ? '' : new Date(Date.now() + 1000 * left).toLocaleTimeString([], {hour: '2-digit', minute: '2-digit', hour12: false});
  step.textContent = [total ? `step ${done.toLocaleString('en')} of ${total.toLocaleString('en')}` : 'not counted yet', total ? `${Math.floor(100 * share)} %` : '',
    left == null ? '' : `${duration(left)} left, until about ${ends}`].filter(Boolean).join(' · ');
}

function take(id, answer) {
  const run = store.runs.get(id);
  if (!run) return false;
  if (run.points.length && answer.started !== run.about.started && answer.started) {
    // The run goes on from a checkpoint: what was measured behind it is forgotten and comes anew.
    store.runs.set(id, Object.assign(fresh(), {about: answer}));
    return true;
  }
  run.about = answer;
  for (const p of answer.points) { run.after = p[0]; run.points.push(p); }
  return answer.more;
}

function takePanels(answer) {
  if (answer.anew) store.samples = [];
  store.samples.push(...answer.samples);
  store.notes.push(...answer.notes);
  if (answer.samples.length || answer.anew) tell('samples');
  if (answer.notes.length) tell('log');
}

async function fetchNews() {
  const runs = [...store.runs].map(([id, run]) => [id, run.after]), asked = store.runs.size === 1 ? store.main : 0;
  const answer = await server.news({runs, main: asked, notes: store.notes.at(-1)?.[0] ?? 0, samples: store.samples.at(-1)?.[0] ?? 0,
    started: store.runs.get(store.main)?.about.started ?? null});
  let more = false, anything = false;
  for (const [id, one] of answer.runs) { anything ||= one.points.length > 0; more = take(id, one) || more; }
  if (asked && asked === store.main) takePanels(answer);
  describe();
  tell('chart', anything);
  return more ? 0 : [...store.runs.values()].some(run => active(run.about.state)) ? 400 : 2000;
}

async function ask() {
  clearTimeout(timer);
  if (asking) { again = true; return; }
  let pause = 4000;
  if (store.runs.size && document.visibilityState === 'visible' && window.workbench.seen(element)) {
    asking = true;
    pause = await fetchNews().catch(error => { console.warn('The run could not be fetched; trying again.', error); return 4000; });
    asking = false;
  }
  timer = setTimeout(ask, again ? 0 : pause);
  again = false;
}

function choose() {
  // The value lists numbers of runs: the one that is shown, then those that are laid over it.
  intoSlot(host);
  const wanted = String(props.value || '').split(',').map(Number).filter(Boolean);
  if (wanted[0] !== store.main) {
    Object.assign(store, {main: wanted[0] ?? null, samples: [], notes: [], marked: null});
    for (const part of ['samples', 'log']) tell(part, true);
  }
  if (`${wanted}` !== `${[...store.runs.keys()]}`) {
    store.runs = new Map(wanted.map(id => [id, store.runs.get(id) || fresh()]));
    describe();
    tell('chart', true);
  }
  ask();
}

document.addEventListener('visibilitychange', ask);
new IntersectionObserver(seen => { if (seen.at(-1).isIntersecting) ask(); }).observe(element);
watch('value', choose);
describe();
choose();
