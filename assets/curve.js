// The live curve. Fetches its own points, so a lost tick, a reload or a second tab can never leave a gap in it.
const host = document.createElement('div');
host.innerHTML = `
  <div class="curve-bar">
    <span class="curve-state" role="status"></span>
    <label>Smoothing <input type="range" min="0" max="0.95" step="0.05" aria-label="Smoothing"></label>
    <label><input type="checkbox" aria-label="Log scale"> Log scale</label>
  </div>
  <div class="curve-plot" role="img" aria-label="Loss by step"></div>
  <div class="curve-figures"></div>`;
const [smoothing, logScale] = host.querySelectorAll('input');
const [state, plot, figures] = ['.curve-state', '.curve-plot', '.curve-figures'].map(one => host.querySelector(one));
const kept = JSON.parse(localStorage.getItem('lora-workbench-curve') || '{}');
smoothing.value = kept.smoothing ?? 0;
logScale.checked = kept.log ?? false;

let run = null, after = 0, train = [], validation = [], last = null, about = {}, dragging = false, timer = null, asking = false;
const figure = value => value == null ? '–' : value;
const duration = seconds => seconds == null ? '–'
  : seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;

function place() {
  const slot = element.querySelector('.curve-slot');
  if (slot && host.parentElement !== slot) slot.replaceChildren(host);
}

function smoothed(values, weight) {
  // Exponential moving average, corrected for its start (Kingma and Ba 2014, section 3).
  let mean = 0, power = 1;
  return values.map(value => {
    mean = weight * mean + (1 - weight) * value;
    power *= weight;
    return mean / (1 - power);
  });
}

function colours() {
  const dark = document.body.classList.contains('dark');
  return dark
    ? {text: '#cbd5e1', grid: '#263145', train: '#2dd4bf', faint: 'rgba(45,212,191,.28)', validation: '#fbbf24', hover: '#1c2739'}
    : {text: '#334155', grid: '#e2e8f0', train: '#0f766e', faint: 'rgba(15,118,110,.25)', validation: '#b45309', hover: '#ffffff'};
}

function draw() {
  if (dragging || !window.Plotly || !host.isConnected || !plot.clientWidth) return;
  const weight = Number(smoothing.value), c = colours(), x = train.map(p => p[0]), y = train.map(p => p[1]);
  const traces = [];
  if (weight > 0) traces.push({x, y, name: 'Train (raw)', mode: 'lines', line: {color: c.faint, width: 1}, hoverinfo: 'skip'});
  traces.push({x, y: weight > 0 ? smoothed(y, weight) : y, name: 'Train loss', mode: train.length < 40 ? 'lines+markers' : 'lines',
    line: {color: c.train, width: 2}, marker: {size: 5}, hovertemplate: 'step %{x}<br>train %{y:.4f}<extra></extra>'});
  traces.push({x: validation.map(p => p[0]), y: validation.map(p => p[1]), name: 'Validation loss', mode: 'lines+markers',
    line: {color: c.validation, width: 2, dash: 'dot'}, marker: {size: 7, symbol: 'diamond'},
    hovertemplate: 'step %{x}<br>validation %{y:.4f}<extra></extra>'});
  const axis = {gridcolor: c.grid, zeroline: false, linecolor: c.grid, tickfont: {size: 11}};
  Plotly.react(plot, traces, {
    uirevision: `${run}`, paper_bgcolor: 'transparent', plot_bgcolor: 'transparent', font: {color: c.text, size: 12},
    margin: {l: 52, r: 12, t: 8, b: 40}, legend: {orientation: 'h', y: 1.08, x: 1, xanchor: 'right'}, hovermode: 'x unified',
    hoverlabel: {bgcolor: c.hover, font: {color: c.text}},
    xaxis: {...axis, title: {text: 'Step'}, rangemode: 'tozero'},
    yaxis: {...axis, title: {text: 'Loss (nats)'}, type: logScale.checked ? 'log' : 'linear'},
  }, {displaylogo: false, responsive: true, modeBarButtonsToRemove: ['lasso2d', 'select2d', 'autoScale2d']});
}

function describe() {
  const names = {queued: 'Queued', preparing: 'Preparing: loading the base and reading the data', running: 'Running',
    finished: 'Finished', stopped: 'Stopped', paused: 'Paused', failed: 'Failed', interrupted: 'Interrupted'};
  const kind = {finished: 'good', failed: 'bad', interrupted: 'bad', stopped: 'calm', paused: 'calm'}[about.state] || 'busy';
  const badge = Object.assign(document.createElement('span'), {className: `state ${kind}`, textContent: names[about.state] || 'No run yet'});
  const reason = Object.assign(document.createElement('span'), {textContent: about.reason ? ` ${about.reason}` : ''});
  state.replaceChildren(...(run ? [badge, reason] : [document.createTextNode('No run yet: choose a base and data, then start.')]));
  const p = last || [];
  const best = validation.length ? Math.min(...validation.map(one => one[1])).toFixed(4) : null;
  const shown = [
    ['Step', last ? `${p[1]} / ${figure(about.total_steps)}` : '–'], ['Train loss', last ? p[2].toFixed(4) : '–'],
    ['Validation loss', validation.length ? validation.at(-1)[1].toFixed(4) : '–'], ['Best validation', figure(best)],
    ['Learning rate', last ? p[4].toExponential(2) : '–'], ['Gradient norm', last ? p[5].toFixed(3) : '–'],
    ['Tokens/s', last ? Math.round(p[6]).toLocaleString() : '–'], ['Memory', last ? `${(p[7] / 2 ** 30).toFixed(2)} GiB` : '–'],
    ['Time left', about.state === 'running' && last ? duration(p[8]) : '–']];
  plot.style.opacity = run ? 1 : 0.35;
  figures.replaceChildren(...shown.map(([label, value]) => {
    const box = document.createElement('div');
    box.append(Object.assign(document.createElement('small'), {textContent: label}), Object.assign(document.createElement('b'), {textContent: value}));
    return box;
  }));
}

const active = state => ['queued', 'preparing', 'running'].includes(state);

function take(answer) {
  if (about.state && !active(about.state) && active(answer.state) && after) {
    // The run goes on from a checkpoint: what was measured behind it is forgotten and comes anew.
    [after, train, validation, last, about] = [0, [], [], null, answer];
    return ask();
  }
  about = answer;
  for (const p of answer.points) {
    after = p[0];
    if (p[2] != null) { train.push([p[1], p[2]]); last = p; }
    if (p[3] != null) validation.push([p[1], p[3]]);
  }
  plot.dataset.points = train.length;
  describe();
  if (answer.points.length) draw();
}

async function ask() {
  clearTimeout(timer);
  place();
  let pause = 4000;
  if (run && document.visibilityState === 'visible' && !asking) {
    asking = true;
    const asked = run;
    try {
      const answer = await server.points({run: asked, after});
      if (asked === run) take(answer);
      pause = answer.more ? 0 : active(answer.state) ? 1000 : 4000;
    } catch (error) {
      console.warn('The curve could not be fetched; trying again.', error);
    }
    asking = false;
  }
  timer = setTimeout(ask, pause);
}

function choose() {
  place();
  const chosen = Number(props.value) || null;
  if (chosen !== run) {
    [run, after, train, validation, last, about] = [chosen, 0, [], [], null, {}];
    describe();
    draw();
  }
  ask();
}

const remember = () => {
  localStorage.setItem('lora-workbench-curve', JSON.stringify({smoothing: Number(smoothing.value), log: logScale.checked}));
  draw();
};
smoothing.addEventListener('input', remember);
logScale.addEventListener('change', remember);
plot.addEventListener('pointerdown', () => { dragging = true; });
addEventListener('pointerup', () => { dragging = false; });
addEventListener('workbench-theme', draw);
document.addEventListener('visibilitychange', ask);
new ResizeObserver(draw).observe(plot);
watch('value', choose);
describe();
choose();
