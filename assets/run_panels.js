// Beside the chart: what the run answered to its sample prompts, step by step, and its log. Works in curve.js' scope.
panels.innerHTML = `
  <section class="samples" hidden><h4>Samples</h4>
    <label>Step <input type="range" min="0" max="0" step="1" aria-label="Step of the samples"> <output></output></label>
    <div class="sample-cards"></div></section>
  <section><h4>Log <input type="search" placeholder="Search" aria-label="Search the log"></h4><ul class="log" aria-label="Log of the run"></ul></section>`;
const [sampleBox, sampleCards, logList] = ['.samples', '.sample-cards', '.log'].map(one => panels.querySelector(one));
const [sampleStep, logSearch] = [panels.querySelector('input[type=range]'), panels.querySelector('input[type=search]')];
let samples = [], notes = [], follows = true;

const panelPosition = () => ({notes: notes.at(-1)?.[0] ?? 0, samples: samples.at(-1)?.[0] ?? 0, started: runs.get(main)?.about.started ?? null});

function clearPanels() {
  [samples, notes, follows] = [[], [], true];
  showSamples();
  showLog();
}

function takePanels(answer) {
  if (answer.anew) samples = [];
  samples.push(...answer.samples);
  notes.push(...answer.notes);
  if (answer.samples.length || answer.anew) showSamples();
  if (answer.notes.length) showLog();
}

function showSamples() {
  const steps = [...new Set(samples.map(one => one[1]))];
  sampleBox.hidden = !steps.length;
  if (!steps.length) return;
  sampleStep.max = steps.length - 1;
  if (follows) sampleStep.value = steps.length - 1;
  const step = steps[Math.min(Number(sampleStep.value), steps.length - 1)];
  panels.querySelector('output').textContent = `${step}`;
  sampleCards.replaceChildren(...samples.filter(one => one[1] === step).map(one =>
    make('div', {className: 'card'}, make('div', {className: 'turn user'}, make('b', {textContent: 'prompt'}), one[2]),
      make('div', {className: 'turn assistant'}, make('b', {textContent: `at step ${step}`}), one[3]))));
  marked = follows && sampleStep.value === sampleStep.max ? null : step;
}

function showLog() {
  const wanted = logSearch.value.trim().toLowerCase(), end = logList.scrollHeight - logList.scrollTop - logList.clientHeight < 30;
  logList.replaceChildren(...notes.filter(one => !wanted || one[3].toLowerCase().includes(wanted) || one[2] === wanted).map(one =>
    make('li', {className: `kind-${one[2]}`}, make('time', {textContent: new Date(one[1] * 1000).toLocaleTimeString([], {hour12: false})}), one[3])));
  if (wanted && !logList.childElementCount) logList.append(make('li', {className: 'quiet', textContent: 'Nothing in the log has these words.'}));
  if (end) logList.scrollTop = logList.scrollHeight;
}

sampleStep.addEventListener('input', () => { follows = sampleStep.value === sampleStep.max; showSamples(); draw(); });
logSearch.addEventListener('input', showLog);
watch('value', choose);
describe();
choose();
