// What the run answered to its sample prompts, step by step.
const host = make('div', {className: 'run-panels'});
host.innerHTML = `
  <div class="samples" hidden><label>Step <input type="range" min="0" max="0" step="1" aria-label="Step of the samples"> <output></output></label>
    <div class="sample-cards"></div></div>
  <div class="empty"></div>`;
const [box, slider, output, cards, nothing] = ['.samples', 'input', 'output', '.sample-cards', '.empty'].map(one => host.querySelector(one));
let follows = true;

function show(anew) {
  intoSlot(host);
  if (anew) follows = true;
  const steps = [...new Set(store.samples.map(one => one[1]))];
  box.hidden = !steps.length;
  nothing.hidden = steps.length > 0;
  if (!steps.length) {
    nothing.textContent = store.runs.get(store.main)?.about.asks === false
      ? 'This run has no sample prompts. Give some when you start one, under Sample prompts, and read here how its answers change.'
      : 'Its first answers come with the first evaluation, or at once by "Sample now".';
    return;
  }
  slider.max = steps.length - 1;
  if (follows) slider.value = steps.length - 1;
  const at = Math.min(Number(slider.value), steps.length - 1), step = steps[at];
  output.textContent = `${step}`;
  const before = new Map(store.samples.filter(one => one[1] === steps[at - 1]).map(one => [one[2], one[3]]));
  cards.replaceChildren(...store.samples.filter(one => one[1] === step).map(one => {
    const turn = (kind, word, text) => make('div', {className: `turn ${kind}`}, make('b', {textContent: word}), text);
    const same = before.get(one[2]) === one[3] ? make('small', {className: 'quiet', textContent: `The same as at step ${steps[at - 1]}.`}) : '';
    return make('div', {className: 'card'}, turn('user', 'prompt', one[2]), turn('assistant', `at step ${step}`, one[3]), same);
  }));
  store.marked = follows && slider.value === slider.max ? null : step;
}

slider.addEventListener('input', () => { follows = slider.value === slider.max; show(); tell('chart', true); });
listen('samples', show);
show();
