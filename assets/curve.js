// The live chart of one run and those laid over it. It fetches what is new by itself, so a lost tick, a reload or a second
// tab can never leave a gap in it. run_panels.js shows what belongs to the run beside the chart.
const METRICS = {
  loss: {title: 'Loss', axis: 'Loss (nats)', at: 2, digits: 4},
  rate: {title: 'Learning rate', axis: 'Learning rate', at: 4, exponent: true},
  norm: {title: 'Gradient norm', axis: 'Gradient norm', at: 5, digits: 3},
  pace: {title: 'Tokens/s', axis: 'Tokens/s', at: 6, digits: 0},
  share: {title: 'Share of the hardware’s limit', axis: 'Share of the limit (%)', digits: 1,
    of: (p, run) => p[6] != null && run.about.operations_a_second ? 100 * p[6] * run.about.operations_a_token / run.about.operations_a_second : null},
  memory: {title: 'Memory', axis: 'Memory (GiB)', digits: 2, of: p => p[7] == null ? null : p[7] / 2 ** 30},
};
// What the objective of the run shown names beside these: a chart each, or several in one; the last column of a point.
let named = {};
const charts = () => ({...METRICS, ...named});
const AXES = {step: ['Step', p => p[1]], tokens: ['Tokens', p => p[9]], time: ['Training time (min)', p => p[10] == null ? null : p[10] / 60]};
const PALETTE = [['#0f766e', '#2dd4bf'], ['#b45309', '#fbbf24'], ['#6d28d9', '#a78bfa'], ['#be123c', '#fb7185'], ['#1d4ed8', '#60a5fa'],
  ['#4d7c0f', '#a3e635'], ['#a21caf', '#e879f9'], ['#0e7490', '#22d3ee']];
const MOST_DRAWN = 3000, MOST_ROWS = 200;

const host = document.createElement('div');
host.innerHTML = `
  <div class="curve-head"><span class="curve-state" role="status"></span></div>
  <div class="curve-bar">
    <label>Chart <select aria-label="Chart">${Object.entries(METRICS).map(([key, one]) => `<option value="${key}">${one.title}</option>`).join('')}</select></label>
    <label>by <select aria-label="Horizontal axis">${Object.entries(AXES).map(([key, one]) => `<option value="${key}">${one[0]}</option>`).join('')}</select></label>
    <label>Smoothing <input type="range" min="0" max="0.95" step="0.05" aria-label="Smoothing"></label>
    <label><input type="checkbox" aria-label="Log scale"> Log scale</label>
    <label><input type="checkbox" aria-label="Clip outliers"> Clip outliers</label>
    <label><input type="checkbox" aria-label="Notify me at the end"> Notify me at the end</label>
    <span class="curve-save"><button type="button" data-save="csv">CSV</button><button type="button" data-save="png">PNG</button></span>
  </div>
  <div class="curve-plot" role="img" aria-label="Loss by step"></div>
  <div class="curve-figures"></div>
  <details class="curve-table"><summary>Table</summary><div></div></details>
  <div class="run-panels"></div>`;
const [metricBox, axisBox] = host.querySelectorAll('select');
const [smoothing, logScale, clip, notify] = host.querySelectorAll('input');
const [state, plot, figures, table, panels] =
  ['.curve-state', '.curve-plot', '.curve-figures', '.curve-table', '.run-panels'].map(one => host.querySelector(one));
const kept = JSON.parse(localStorage.getItem('lora-workbench-curve') || '{}');
metricBox.value = kept.metric in METRICS ? kept.metric : 'loss';
let wished = kept.metric ?? 'loss';  // it may be one that only this run's objective names
axisBox.value = kept.axis in AXES ? kept.axis : 'step';
[smoothing.value, logScale.checked, clip.checked, notify.checked] = [kept.smoothing ?? 0, kept.log ?? false, kept.clip ?? false, kept.notify ?? false];

const fresh = () => ({after: 0, points: [], about: {}});
let runs = new Map(), main = null, dragging = false, timer = null, asking = false, marked = null;
const dash = value => value == null ? '–' : value;
const make = (tag, about, ...inner) => { const one = Object.assign(document.createElement(tag), about); one.append(...inner); return one; };
const duration = seconds => seconds == null ? '–'
  : seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
const active = name => ['queued', 'preparing', 'running', 'pausing'].includes(name);
const dark = () => document.body.classList.contains('dark');

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

function thinned(pairs) {
  // What a screen can show: of each bucket its lowest and its highest point, so that no spike is lost.
  if (pairs.length <= MOST_DRAWN) return pairs;
  const width = Math.ceil(2 * pairs.length / MOST_DRAWN), chosen = [];
  for (let at = 0; at < pairs.length; at += width) {
    const bucket = pairs.slice(at, at + width);
    let low = 0, high = 0;
    bucket.forEach((pair, index) => { if (pair[1] < bucket[low][1]) low = index; if (pair[1] > bucket[high][1]) high = index; });
    for (const index of [...new Set([Math.min(low, high), Math.max(low, high)])]) chosen.push(bucket[index]);
  }
  return chosen;
}

function series(run, value) {
  const x = AXES[axisBox.value][1];
  return run.points.map(p => [x(p), value(p), p[1]]).filter(pair => pair[0] != null && pair[1] != null && Number.isFinite(pair[1]));
}

function validation(run, value = p => p[3]) {
  // An evaluation has a step alone; on another axis it stands where that step's measurement does.
  const x = AXES[axisBox.value][1], where = new Map([[0, 0]]);
  if (axisBox.value !== 'step') for (const p of run.points) if (p[2] != null) where.set(p[1], x(p));
  return run.points.filter(p => p[3] != null).map(p => [axisBox.value === 'step' ? p[1] : where.get(p[1]), value(p), p[1]])
    .filter(pair => pair[0] != null && pair[1] != null);
}

function bounds(all) {
  // From the 1st to the 98th percentile: what a spike flattens can be seen again.
  const sorted = all.filter(Number.isFinite).sort((a, b) => a - b);
  if (sorted.length < 10) return null;
  const low = sorted[Math.floor(0.01 * sorted.length)], high = sorted[Math.floor(0.98 * (sorted.length - 1))], room = 0.05 * (high - low) || 0.1;
  if (!logScale.checked) return [low - room, high + room];
  return low > 0 ? [Math.log10(low) - 0.02, Math.log10(high) + 0.02] : null;
}

function colours() {
  return dark() ? {text: '#cbd5e1', grid: '#263145', hover: '#1c2739', mark: '#f472b6'} : {text: '#334155', grid: '#e2e8f0', hover: '#ffffff', mark: '#be185d'};
}

function bringPlotly() {
  // Half a second of the browser's time, so not before there is a chart to be seen.
  if (document.getElementById('plotly-script')) return;
  document.head.append(make('script', {id: 'plotly-script', src: '/workbench/plotly.min.js', onload: draw}));
}

// Plotly reads some HTML in names.
function asText(name) {
  return name.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
}

function offerCharts() {
  // The charts that the main run's objective names stand behind those that every run has.
  const found = {};
  for (const one of runs.get(main)?.about.metrics ?? []) {
    const axis = one.unit ? `${one.title} (${one.unit})` : one.title;
    (found[`named ${one.title}`] ??= {title: one.title, axis, digits: one.digits, lines: []}).lines.push(one);
  }
  if (JSON.stringify(found) === JSON.stringify(named)) return;
  named = found;
  metricBox.replaceChildren(...Object.entries(charts()).map(([key, one]) => make('option', {value: key, textContent: one.title})));
  metricBox.value = wished in charts() ? wished : 'loss';
}

function lines(metric) {
  // What is drawn for a run: one line, or one for each metric of a chart that an objective names, with its evaluations.
  const isLoss = metric === METRICS.loss;
  if (metric.lines) return metric.lines.map(one => ({label: one.label, train: p => p[3] == null ? p[11]?.[one.name] : null, judged: p => p[11]?.[one.name]}));
  return [{label: isLoss ? 'Train loss' : metric.title, train: metric.of ?? (p => p[metric.at]), judged: isLoss ? p => p[3] : null}];
}

function draw() {
  if (dragging || !host.isConnected || !plot.clientWidth) return;
  if (!window.Plotly) return bringPlotly();
  const weight = Number(smoothing.value), c = colours(), metric = charts()[metricBox.value], traces = [], values = [];
  const several = runs.size > 1, shade = dark() ? 1 : 0, drawn = lines(metric);
  [...runs.entries()].flatMap(([id, run]) => drawn.map(line => [id, run, line])).forEach(([id, run, line], index) => {
    const colour = PALETTE[index * (several || drawn.length === 1 ? 1 : 2) % PALETTE.length][shade];
    const name = several ? asText(`${run.about.name || `Run ${id}`}${drawn.length > 1 ? ` ${line.label}` : ''}`) : '';
    const pairs = thinned(series(run, p => line.train(p, run))), x = pairs.map(one => one[0]), y = pairs.map(one => one[1]);
    const smooth = weight > 0 && metricBox.value !== 'rate';
    values.push(...y);
    if (smooth && !several) traces.push({x, y, name: 'raw', mode: 'lines', line: {color: colour, width: 1}, opacity: 0.28, hoverinfo: 'skip', showlegend: false});
    const label = several ? name : asText(line.label), judgedLabel = metric.lines ? `${label} (validation)` : several ? `${name} validation` : 'Validation loss';
    traces.push({x, y: smooth ? smoothed(y, weight) : y, name: label, mode: pairs.length < 40 ? 'lines+markers' : 'lines',
      line: {color: colour, width: several && id !== main ? 1.5 : 2}, marker: {size: 5},
      hovertemplate: `${label} %{y:${metric.exponent ? '.3e' : `.${metric.digits}f`}}<extra></extra>`});
    const judged = line.judged ? validation(run, line.judged) : [];
    if (judged.length) traces.push({x: judged.map(one => one[0]), y: judged.map(one => one[1]), name: judgedLabel,
      mode: 'lines+markers', line: {color: several ? colour : PALETTE[(index * (drawn.length > 1 ? 2 : 1) + 1) % PALETTE.length][shade], width: 2, dash: 'dot'},
      marker: {size: 7, symbol: 'diamond'}, showlegend: !several,
      hovertemplate: `${metric.lines ? judgedLabel : `${several ? name + ' ' : ''}validation`} %{y:.${metric.digits}f}<extra></extra>`});
  });
  const axis = {gridcolor: c.grid, zeroline: false, linecolor: c.grid, tickfont: {size: 11}};
  const range = clip.checked ? bounds(values) : null;
  const line = marked == null || axisBox.value !== 'step' ? [] : [{type: 'line', x0: marked, x1: marked, yref: 'paper', y0: 0, y1: 1, line: {color: c.mark, width: 1, dash: 'dash'}}];
  Plotly.react(plot, traces, {
    uirevision: `${[...runs.keys()]} ${metricBox.value} ${axisBox.value} ${logScale.checked} ${clip.checked}`, paper_bgcolor: 'transparent', plot_bgcolor: 'transparent', font: {color: c.text, size: 12},
    margin: {l: 58, r: 12, t: 8, b: 40}, legend: {orientation: 'h', y: 1.1, x: 1, xanchor: 'right'}, hovermode: 'x unified', shapes: line,
    hoverlabel: {bgcolor: c.hover, font: {color: c.text}}, showlegend: true,
    xaxis: {...axis, title: {text: AXES[axisBox.value][0]}, rangemode: 'tozero', hoverformat: axisBox.value === 'time' ? '.1f' : ',d'},
    yaxis: {...axis, title: {text: metric.axis}, type: logScale.checked ? 'log' : 'linear', exponentformat: 'power', ...(range ? {range} : {})},
  }, {displayModeBar: false, responsive: true});
  plot.setAttribute('aria-label', `${metric.title} by ${AXES[axisBox.value][0].toLowerCase()}`);
  fillTable();
}

function fillTable() {
  if (!table.open) return;
  const run = runs.get(main), rows = run ? run.points.filter(p => p[2] != null) : [], every = Math.max(1, Math.ceil(rows.length / MOST_ROWS));
  const shown = rows.filter((_, index) => index % every === 0 || index === rows.length - 1), judged = new Map(run ? run.points.filter(p => p[3] != null).map(p => [p[1], p[3]]) : []);
  const cells = (tag, values) => make('tr', {}, ...values.map(value => make(tag, {textContent: value})));
  table.lastElementChild.replaceChildren(make('table', {className: 'rows'},
    make('thead', {}, cells('th', ['Step', 'Train loss', 'Validation loss', 'Learning rate', 'Gradient norm', 'Tokens/s', 'Memory (GiB)'])),
    make('tbody', {}, ...shown.map(p => cells('td', [p[1], p[2].toFixed(4), judged.has(p[1]) ? judged.get(p[1]).toFixed(4) : '–', p[4].toExponential(2),
      p[5] == null ? '–' : p[5].toFixed(3), Math.round(p[6]).toLocaleString(), (p[7] / 2 ** 30).toFixed(2)])))));
}

function describe() {
  const run = runs.get(main) || fresh(), about = run.about;
  const names = {queued: 'Queued', preparing: 'Preparing: loading the base and reading the data', running: 'Running', pausing: 'Pausing',
    finished: 'Finished', stopped: 'Stopped', paused: 'Paused', failed: 'Failed', interrupted: 'Interrupted'};
  const kind = {finished: 'good', failed: 'bad', interrupted: 'bad', stopped: 'calm', paused: 'calm'}[about.state] || 'busy';
  const badge = make('span', {className: `state ${kind}`, textContent: names[about.state] || 'No run yet'});
  const reason = make('span', {textContent: about.reason ? ` ${about.reason}` : ''});
  state.replaceChildren(...(main ? [badge, reason] : [document.createTextNode('No run yet: choose a base and data, then start.')]));
  const p = run.points.findLast(one => one[2] != null), judged = run.points.filter(one => one[3] != null);
  const best = judged.length ? judged.reduce((low, one) => one[3] < low[3] ? one : low) : null;
  const share = p && METRICS.share.of(p, run);
  const shown = [
    ['Step', p ? `${p[1]} / ${dash(about.total_steps)}` : '–'], ['Train loss', p ? p[2].toFixed(4) : '–'],
    ['Validation loss', judged.length ? judged.at(-1)[3].toFixed(4) : '–'], ['Best validation', best ? `${best[3].toFixed(4)} at ${best[1]}` : '–'],
    ['Learning rate', p ? p[4].toExponential(2) : '–'], ['Gradient norm', p && p[5] != null ? p[5].toFixed(3) : '–'],
    ['Tokens/s', p ? Math.round(p[6]).toLocaleString() : '–'], ['Of the hardware’s limit', share ? `${share.toFixed(0)} %` : '–'],
    ['Memory', p ? `${(p[7] / 2 ** 30).toFixed(2)} GiB` : '–'],
    about.state === 'running' || !about.energy ? ['Time left', about.state === 'running' && p ? duration(p[8]) : '–'] : ['Energy', `${(about.energy / 3.6e6).toFixed(3)} kWh`]];
  for (const one of about.metrics ?? []) {
    const value = p?.[11]?.[one.name];
    shown.push([one.label, value == null ? '–' : `${value.toFixed(one.digits)}${one.unit ? ` ${one.unit}` : ''}`]);
  }
  plot.style.opacity = main ? 1 : 0.35;
  plot.dataset.points = run.points.filter(one => one[2] != null).length;
  figures.replaceChildren(...shown.map(([label, value]) => make('div', {}, make('small', {textContent: label}), make('b', {textContent: value}))));
}

function take(id, answer) {
  const run = runs.get(id);
  if (!run) return false;
  if (run.points.length && answer.started !== run.about.started && answer.started) {
    // The run goes on from a checkpoint: what was measured behind it is forgotten and comes anew.
    runs.set(id, Object.assign(fresh(), {about: answer}));
    return true;
  }
  const before = run.about.state;
  run.about = answer;
  for (const p of answer.points) { run.after = p[0]; run.points.push(p); }
  if (active(before) && answer.state && !active(answer.state)) tell(answer);
  return answer.more;
}

function tell(about) {
  if (!notify.checked || !('Notification' in window) || Notification.permission !== 'granted') return;
  new Notification(`${about.name}: ${about.state}`, {body: about.reason || 'The run has ended.', icon: '/workbench/icon.svg', tag: about.name});
}

async function ask() {
  clearTimeout(timer);
  place();
  const hidden = document.visibilityState !== 'visible';
  let pause = 4000;
  if (runs.size && !(hidden && !notify.checked) && !asking) {
    asking = true;
    const wanted = [...runs].map(([id, run]) => [id, run.after]), asked = main;
    try {
      const answer = await server.news({runs: wanted, main, ...panelPosition()});
      let more = false, anything = false;
      for (const [id, one] of answer.runs) { anything ||= one.points.length > 0; more = take(id, one) || more; }
      if (asked === main) takePanels(answer);
      offerCharts();
      describe();
      if (anything) draw();
      pause = more ? 0 : hidden ? 15000 : [...runs.values()].some(run => active(run.about.state)) ? 400 : 2000;
    } catch (error) {
      console.warn('The curve could not be fetched; trying again.', error);
    }
    asking = false;
  }
  timer = setTimeout(ask, pause);
}

function choose() {
  // The value lists run numbers: the one that is shown, then those that are laid over it.
  place();
  const wanted = String(props.value || '').split(',').map(Number).filter(Boolean);
  if (wanted[0] !== main) { [main, marked] = [wanted[0] ?? null, null]; clearPanels(); }
  if (`${wanted}` !== `${[...runs.keys()]}`) {
    runs = new Map(wanted.map(id => [id, runs.get(id) || fresh()]));
    describe();
    draw();
  }
  ask();
}

function save(kind) {
  const name = (runs.get(main)?.about.name || 'run').replace(/[^\w.-]+/g, '-');
  if (kind === 'png') return Plotly.downloadImage(plot, {format: 'png', width: 1400, height: 700, filename: `${name}-${metricBox.value}`});
  const own = [...new Set([...runs.values()].flatMap(run => (run.about.metrics ?? []).map(one => one.name)))];
  const quoted = text => `"${String(text).replace(/^([=+\-@])/, "'$1").replaceAll('"', '""')}"`, lines = ['run,step,loss,validation_loss,learning_rate,grad_norm,tokens_per_second,memory_bytes,tokens,seconds' + own.map(one => `,${one}`).join('')];
  for (const [id, run] of runs)
    for (const p of run.points) lines.push([quoted(run.about.name || id), p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[9], p[10], ...own.map(one => p[11]?.[one])].map(one => one ?? '').join(','));
  const link = make('a', {href: URL.createObjectURL(new Blob([lines.join('\n') + '\n'], {type: 'text/csv'})), download: `${name}.csv`});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const remember = () => {
  wished = metricBox.value;
  localStorage.setItem('lora-workbench-curve', JSON.stringify({metric: metricBox.value, axis: axisBox.value, smoothing: Number(smoothing.value),
    log: logScale.checked, clip: clip.checked, notify: notify.checked}));
  draw();
};
for (const one of [metricBox, axisBox, logScale, clip]) one.addEventListener('change', remember);
smoothing.addEventListener('input', remember);
notify.addEventListener('change', async () => {
  if (notify.checked && (!('Notification' in window) || await Notification.requestPermission() !== 'granted')) notify.checked = false;
  remember();
});
host.querySelector('.curve-save').addEventListener('click', event => { if (event.target.dataset.save) save(event.target.dataset.save); });
table.addEventListener('toggle', fillTable);
plot.addEventListener('pointerdown', () => { dragging = true; });
addEventListener('pointerup', () => { dragging = false; });
addEventListener('workbench-theme', draw);
document.addEventListener('visibilitychange', ask);
new ResizeObserver(draw).observe(plot);
