// The live chart of one run and those laid over it, its figures and its table. run_feed.js fetches what is new.
const METRICS = {
  loss: {title: 'Loss', axis: 'Loss (nats)', at: 2, digits: 4},
  validation: {title: 'Validation loss', axis: 'Validation loss (nats)', digits: 4, judged: p => p[3]},
  rate: {title: 'Learning rate', axis: 'Learning rate', at: 4, exponent: true},
  norm: {title: 'Gradient norm', axis: 'Gradient norm', at: 5, digits: 3},
  pace: {title: 'Tokens/s', axis: 'Tokens/s', at: 6, digits: 0},
  share: {title: 'Processor use', axis: 'Share of what the processor can do (%)', digits: 1,
    of: (p, run) => p[6] != null && run.about.operations_a_second ? 100 * p[6] * run.about.operations_a_token / run.about.operations_a_second : null},
  memory: {title: 'Memory', axis: 'Memory (GiB)', digits: 2, of: p => p[7] == null ? null : p[7] / 2 ** 30},
};
// What the objective of the run shown names beside these: a chart each, or several in one; the last column of a point.
let named = {};
const charts = () => ({...METRICS, ...named});
const AXES = {step: ['Step', p => p[1]], tokens: ['Tokens', p => p[9]], time: ['Training time (min)', p => p[10] == null ? null : p[10] / 60]};
// Runs differ by their dashes and marks as well as by their colours.
const DASHES = ['solid', 'dash', 'dot', 'dashdot', 'longdash', 'longdashdot'], STROKES = ['', '6 3', '2 2', '6 2 2 2', '10 3', '10 2 2 2'];
const SYMBOLS = ['diamond', 'circle', 'square', 'triangle-up', 'x', 'cross', 'star', 'triangle-down'];
const MOST_DRAWN = 3000, MOST_ROWS = 200, KEPT = 'lora-workbench-curve';

const host = make('div', {className: 'curve'});
host.innerHTML = `
  <div class="curve-bar">
    <label><select aria-label="Chart">${Object.entries(METRICS).map(([key, one]) => `<option value="${key}">${one.title}</option>`).join('')}</select></label>
    <label>by <select aria-label="Horizontal axis">${Object.entries(AXES).map(([key, one]) => `<option value="${key}">${one[0]}</option>`).join('')}</select></label>
    <label>Smoothing <input type="range" min="0" max="0.95" step="0.05" aria-label="Smoothing"></label>
    <label><input type="checkbox" aria-label="Log scale"> Log scale</label>
    <label><input type="checkbox" aria-label="Clip outliers"> Clip outliers</label>
    <span class="curve-save"><button type="button" class="small" data-save="csv" title="All that was measured, as a table">CSV</button><button type="button" class="small" data-save="png" title="The chart as a picture">PNG</button></span>
  </div>
  <div class="curve-legend" role="group" aria-label="Lines of the chart"></div>
  <div class="curve-plot" role="figure" aria-label="Loss by step"></div>
  <div class="curve-figures"></div>
  <details class="curve-table"><summary>Table</summary><div></div></details>`;
const [metricBox, axisBox] = host.querySelectorAll('select');
const [smoothing, logScale, clip] = host.querySelectorAll('input');
const [legend, plot, figures, table] = ['.curve-legend', '.curve-plot', '.curve-figures', '.curve-table'].map(one => host.querySelector(one));
const kept = JSON.parse(localStorage.getItem(KEPT) || '{}');
metricBox.value = kept.metric in METRICS ? kept.metric : 'loss';
let wished = kept.metric ?? 'loss';  // it may be one that only this run's objective names
axisBox.value = kept.axis in AXES ? kept.axis : 'step';
[smoothing.value, logScale.checked, clip.checked] = [kept.smoothing ?? 0, kept.log ?? false, kept.clip ?? false];
let dragging = false, legendShows = '';
const off = new Set();  // lines that were put out in the legend

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

// Plotly reads some HTML in names.
const asText = name => name.replaceAll('&', '&amp;').replaceAll('<', '&lt;');

function offerCharts() {
  // The charts that the main run's objective names stand behind those that every run has.
  const found = {};
  for (const one of store.runs.get(store.main)?.about.metrics ?? []) {
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
  return [{label: isLoss ? 'Train loss' : metric.title, train: metric.judged ? null : metric.of ?? (p => p[metric.at]), judged: isLoss ? p => p[3] : metric.judged ?? null}];
}

function entries(metric) {
  // Every line of the chart with its name, colour, dash and mark.
  const drawn = lines(metric), several = store.runs.size > 1, colours = window.workbench.colours();
  return [...store.runs].flatMap(([id, run]) => drawn.map(line => ({id, run, line}))).map((one, index) => {
    const name = several ? `${one.run.about.name || `Run ${one.id}`}${drawn.length > 1 ? ` ${one.line.label}` : ''}` : one.line.label;
    const place = several || drawn.length === 1 ? index : 2 * index;
    return {...one, several, name, colour: colours[place % colours.length], judgedColour: colours[(several ? place : place + 1) % colours.length],
      dash: several ? index % DASHES.length : 0, symbol: SYMBOLS[several ? index % SYMBOLS.length : 0]};
  });
}

function tracesOf(one, metric, weight) {
  const {run, line, several} = one, label = asText(shortened(one.name)), figure = `%{y:${metric.exponent ? '.3e' : `.${metric.digits}f`}}`, traces = [];
  if (line.train) {
    const pairs = thinned(series(run, p => line.train(p, run))), x = pairs.map(pair => pair[0]), y = pairs.map(pair => pair[1]);
    if (weight && !several) traces.push({x, y, name: 'as measured', mode: 'lines', line: {color: one.colour, width: 1}, opacity: 0.28, hoverinfo: 'skip'});
    traces.push({x, y: weight ? smoothed(y, weight) : y, name: label, mode: pairs.length < 40 ? 'lines+markers' : 'lines', marker: {size: 5, symbol: several ? one.symbol : 'circle'},
      line: {color: one.colour, width: several ? 1.5 : 2, dash: DASHES[one.dash]}, hovertemplate: `${label} ${figure}<extra></extra>`});
  }
  const judged = line.judged ? validation(run, line.judged) : [];
  if (judged.length) {
    const name = metric.lines ? `${label} (validation)` : several ? `${label} validation` : 'Validation loss';
    traces.push({x: judged.map(pair => pair[0]), y: judged.map(pair => pair[1]), name, mode: 'lines+markers', line: {color: one.judgedColour, width: several ? 1.5 : 2, dash: line.train ? 'dot' : DASHES[one.dash]},
      marker: {size: 7, symbol: one.symbol}, hovertemplate: `${name} ${figure}<extra></extra>`});
  }
  return traces;
}

function swatch(colour, dash) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg'), path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  for (const [key, value] of Object.entries({width: 26, height: 10, 'aria-hidden': 'true'})) svg.setAttribute(key, value);
  for (const [key, value] of Object.entries({d: 'M1 5H25', stroke: colour, 'stroke-width': 2.5, 'stroke-dasharray': STROKES[dash]})) path.setAttribute(key, value);
  svg.append(path);
  return svg;
}

function drawLegend(all, metric) {
  const judged = one => one.line.judged && one.run.points.some(p => p[3] != null) && !one.several;
  const items = all.flatMap(one => [...(one.line.train || one.several ? [[one.name, one.colour, one.dash]] : []),
    ...(judged(one) ? [[metric.lines ? `${one.name} (validation)` : 'Validation loss', one.judgedColour, 2]] : [])]);
  const now = JSON.stringify([items, [...off]]);
  if (now === legendShows) return;
  legendShows = now;
  legend.replaceChildren(...items.map(([name, colour, dash]) => {
    const button = make('button', {type: 'button', title: name}, swatch(colour, dash), shortened(name));
    button.setAttribute('aria-pressed', !off.has(name));
    button.addEventListener('click', () => { off[off.has(name) ? 'delete' : 'add'](name); draw(); });
    return button;
  }));
}

function draw() {
  if (dragging || !host.isConnected || !plot.clientWidth) return;
  if (!window.Plotly) { window.workbench.bringPlotly().then(draw); return; }
  const metric = charts()[metricBox.value], weight = metricBox.value === 'rate' ? 0 : Number(smoothing.value), all = entries(metric);
  drawLegend(all, metric);
  const shown = all.filter(one => !one.several || !off.has(one.name)).flatMap(one => tracesOf(one, metric, weight));
  const traces = shown.filter(one => store.runs.size > 1 || !off.has(one.name)), range = clip.checked ? bounds(traces.flatMap(one => one.y)) : null;
  const text = window.workbench.plotTemplate().layout.font.color;
  const line = store.marked == null || axisBox.value !== 'step' ? [] : [{type: 'line', x0: store.marked, x1: store.marked, yref: 'paper', y0: 0, y1: 1, line: {color: text, width: 1, dash: 'dash'}}];
  window.Plotly.react(plot, traces, {
    template: window.workbench.plotTemplate(), uirevision: `${[...store.runs.keys()]} ${metricBox.value} ${axisBox.value} ${logScale.checked} ${clip.checked}`,
    margin: {l: 64, r: 12, t: 34, b: 44}, hovermode: 'x unified', shapes: line, showlegend: false,
    xaxis: {title: {text: AXES[axisBox.value][0]}, rangemode: 'tozero', hoverformat: axisBox.value === 'time' ? '.1f' : ',d'},
    yaxis: {title: {text: metric.axis}, type: logScale.checked ? 'log' : 'linear', exponentformat: 'power', ...(range ? {range} : {})},
  }, {responsive: true, displaylogo: false, modeBarButtonsToRemove: ['select2d', 'lasso2d', 'toImage']});
  plot.setAttribute('aria-label', `${metric.title} by ${AXES[axisBox.value][0].toLowerCase()}`);
  fillTable();
}

function fillTable() {
  if (!table.open) return;
  const run = store.runs.get(store.main), rows = run ? run.points.filter(p => p[2] != null) : [], every = Math.max(1, Math.ceil(rows.length / MOST_ROWS));
  const shown = rows.filter((_, index) => index % every === 0 || index === rows.length - 1), judged = new Map(run ? run.points.filter(p => p[3] != null).map(p => [p[1], p[3]]) : []);
  const cells = (tag, values) => make('tr', {}, ...values.map(value => make(tag, {textContent: value})));
  table.lastElementChild.replaceChildren(make('table', {className: 'rows'},
    make('thead', {}, cells('th', ['Step', 'Train loss', 'Validation loss', 'Learning rate', 'Gradient norm', 'Tokens/s', 'Memory (GiB)'])),
    make('tbody', {}, ...shown.map(p => cells('td', [p[1], p[2].toFixed(4), judged.has(p[1]) ? judged.get(p[1]).toFixed(4) : '–', p[4].toExponential(2),
      p[5] == null ? '–' : p[5].toFixed(3), Math.round(p[6]).toLocaleString(), (p[7] / 2 ** 30).toFixed(2)])))));
}

function describe() {
  const run = store.runs.get(store.main) || fresh(), about = run.about, p = lastStep(run), judged = run.points.filter(one => one[3] != null);
  plot.dataset.points = run.points.filter(one => one[2] != null).length;
  figures.hidden = store.runs.size > 1;
  if (figures.hidden) return;
  const best = judged.length ? judged.reduce((low, one) => one[3] < low[3] ? one : low) : null, share = p && METRICS.share.of(p, run);
  const shown = [
    ['Step', p ? `${p[1].toLocaleString('en')} / ${dash(about.total_steps?.toLocaleString('en'))}` : '–'], ['Train loss', p ? p[2].toFixed(4) : '–'],
    ['Validation loss', judged.length ? judged.at(-1)[3].toFixed(4) : '–'], ['Best validation', best ? best[3].toFixed(4) : '–'], ['Best at step', best ? best[1].toLocaleString('en') : '–'],
    ['Learning rate', p ? p[4].toExponential(2) : '–'], ['Gradient norm', p && p[5] != null ? p[5].toFixed(3) : '–'],
    ['Tokens/s', p ? Math.round(p[6]).toLocaleString('en') : '–'], ['Memory', p ? `${(p[7] / 2 ** 30).toFixed(2)} GiB` : '–'],
    ['Trained for', p ? duration(p[10]) : '–'],
    ...(share ? [['Processor use', `${share.toFixed(0)} %`]] : []), ...(about.energy ? [['Energy', `${(about.energy / 3.6e6).toFixed(3)} kWh`]] : [])];
  for (const one of about.metrics ?? []) {
    const value = p?.[11]?.[one.name];
    shown.push([one.label, value == null ? '–' : `${value.toFixed(one.digits)}${one.unit ? ` ${one.unit}` : ''}`]);
  }
  const now = JSON.stringify(shown);
  if (figures.dataset.shown === now) return;
  figures.dataset.shown = now;
  figures.replaceChildren(...shown.map(([label, value]) => make('div', {}, make('small', {textContent: label}), make('b', {textContent: value}))));
}

function save(kind) {
  const name = (store.runs.get(store.main)?.about.name || 'run').replace(/[^\w.-]+/g, '-');
  if (kind === 'png') {
    // Outside of the page the picture needs a ground of its own, and its legend.
    const ground = getComputedStyle(document.body).getPropertyValue('--block-background-fill') || 'white', layout = {...plot.layout, showlegend: true, paper_bgcolor: ground, plot_bgcolor: ground};
    return window.Plotly.downloadImage({data: plot.data, layout}, {format: 'png', width: 1400, height: 700, filename: `${name}-${metricBox.value}`});
  }
  const own = [...new Set([...store.runs.values()].flatMap(run => (run.about.metrics ?? []).map(one => one.name)))];
  const quoted = text => `"${String(text).replace(/^([=+\-@])/, "'$1").replaceAll('"', '""')}"`, lines = ['run,step,loss,validation_loss,learning_rate,grad_norm,tokens_per_second,memory_bytes,tokens,seconds' + own.map(one => `,${one}`).join('')];
  for (const [id, run] of store.runs)
    for (const p of run.points) lines.push([quoted(run.about.name || id), p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[9], p[10], ...own.map(one => p[11]?.[one])].map(one => one ?? '').join(','));
  const link = make('a', {href: URL.createObjectURL(new Blob([lines.join('\n') + '\n'], {type: 'text/csv'})), download: `${name}.csv`});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const remember = () => {
  wished = metricBox.value;
  localStorage.setItem(KEPT, JSON.stringify({metric: metricBox.value, axis: axisBox.value, smoothing: Number(smoothing.value), log: logScale.checked, clip: clip.checked}));
  draw();
};
for (const one of [metricBox, axisBox, logScale, clip]) one.addEventListener('change', remember);
smoothing.addEventListener('input', remember);
host.querySelector('.curve-save').addEventListener('click', event => { if (event.target.dataset.save) save(event.target.dataset.save); });
table.addEventListener('toggle', fillTable);
plot.addEventListener('pointerdown', () => { dragging = true; });
addEventListener('pointerup', () => { dragging = false; });
addEventListener('workbench-theme', draw);
// Plotly fits what it draws again into the room that it had, which may be another once its section is seen again.
new ResizeObserver(() => {
  draw();
  if (plot._fullLayout && plot.clientWidth) window.Plotly.Plots.resize(plot);
}).observe(plot);
function show(changed) {
  intoSlot(host);
  offerCharts();
  describe();
  if (changed) draw();
}
listen('chart', show);
show(true);
