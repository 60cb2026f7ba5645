// A Plotly figure in the page's own look, drawn anew when the theme changes. Its toolbar shows above it while it is pointed at.
const host = document.createElement('div');
host.className = 'chart-plot';
host.setAttribute('role', 'figure');
host.setAttribute('aria-label', fixed.title);
let shown = null;  // the value that is drawn

function place() {
  const slot = element.querySelector('.chart-slot');
  if (slot && host.parentElement !== slot) slot.replaceChildren(host);
}


async function draw() {
  place();
  const given = props.value;
  element.closest('.chart')?.toggleAttribute('data-empty', !given);
  if (!given || !window.workbench.seen(element)) return;
  const plotly = await window.workbench.bringPlotly();
  if (given !== props.value) return;
  const figure = JSON.parse(given), layout = {...figure.layout, template: window.workbench.plotTemplate(), autosize: true};
  delete layout.width;
  shown = given;
  await plotly.react(host, figure.data, layout, {responsive: true, displaylogo: false, modeBarButtonsToRemove: ['select2d', 'lasso2d']});
}

addEventListener('workbench-theme', () => { shown = null; draw(); });
new ResizeObserver(() => {
  if (props.value !== shown) draw();
  else if (host.childElementCount && window.workbench.seen(element)) window.Plotly.Plots.resize(host);  // its tab was closed meanwhile
}).observe(element);
watch('value', draw);
draw();
