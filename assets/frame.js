// The page around its sections: what the address bar names, links, side sheets, splits between list and detail, keys.
// It knows nothing of Gradio but where its tabs and buttons are.
window.workbench = (() => {
  const KEYS = {h: 'home', m: 'models', d: 'data', t: 'train', r: 'runs', a: 'adapters', p: 'playground', e: 'export', s: 'settings'};
  const FOCUSABLE = 'a[href], button:not([disabled]), input:not([disabled]), textarea:not([disabled]), select:not([disabled]), [tabindex="0"]';
  const last = JSON.parse(sessionStorage.getItem('lora-workbench-last') || '{}');  // section → what was chosen in it
  const seen = element => element.getClientRects().length > 0;
  const tell = (name, detail) => dispatchEvent(new CustomEvent(`workbench-${name}`, {detail}));

  // --- the address ---------------------------------------------------------------------------------------------------
  function route() {
    const given = Object.fromEntries(new URLSearchParams(location.search));
    return {section: 'home', ...given};
  }

  function address({section, ...more}) {
    const query = new URLSearchParams({section});
    for (const [key, value] of Object.entries(more)) if (value != null && value !== '' && key !== 'token') query.set(key, value);
    return `${location.pathname}?${query}`;
  }

  function go(wanted, {replace = false} = {}) {
    const to = typeof wanted === 'string' ? Object.fromEntries(new URLSearchParams(wanted.replace(/^[^?]*\?/, ''))) : wanted;
    delete to.at;  // what comes from the server twice in a row differs by it
    if (!('name' in to) && Object.keys(to).length === 1 && last[to.section]) to.name = last[to.section];
    if (address(to) !== `${location.pathname}${location.search}`) history[replace ? 'replaceState' : 'pushState']({}, '', address(to));
    show();
  }

  function choose(section, name) {
    // A list has chosen something: the address follows, unless another section is shown by now.
    last[section] = name;
    sessionStorage.setItem('lora-workbench-last', JSON.stringify(last));
    const now = route();
    if (now.section === section && (now.name ?? '') !== name)
      history[now.name && name ? 'pushState' : 'replaceState']({}, '', address({section, name}));
    mark();
  }

  function granted(parameter) {
    const {[parameter]: wished, ...rest} = route();
    history.replaceState({}, '', address(rest));
  }

  const sectionTab = section => document.querySelector(`#sections > .tab-wrapper [data-tab-id="${CSS.escape(section)}"]`)
    ?? [...document.querySelectorAll('#sections > .tab-wrapper .overflow-dropdown button')]
      .find(one => one.textContent.trim() === document.querySelector(`#rail [data-section="${CSS.escape(section)}"]`)?.dataset.title);

  function show() {
    const now = route(), tab = sectionTab(now.section);
    if (tab && tab.getAttribute('aria-selected') !== 'true') tab.click();
    mark();
    tell('route', now);
  }

  function mark() {
    const now = route().section;
    for (const link of document.querySelectorAll('#rail [data-section]')) {
      if (link.dataset.section === now) link.setAttribute('aria-current', 'page'); else link.removeAttribute('aria-current');
    }
  }

  addEventListener('popstate', () => { closeSheet(); show(); });
  addEventListener('click', event => {
    const link = event.target.closest?.('a[href^="?section="]');
    if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    closeSheet();
    go(link.getAttribute('href'));
  });

  // --- side sheets and dialogs ---------------------------------------------------------------------------------------
  const ROOM = 1100;  // pixels that a window has at least where a sheet leaves room, as in style.css
  let sheet = null, opener = null;
  const shade = Object.assign(document.createElement('div'), {className: 'shade'});

  function openSheet(key, from = document.activeElement) {
    const found = document.getElementById(`sheet-${key}`);
    closeSheet();
    if (!found) return;
    [sheet, opener] = [found, from];
    found.dataset.open = '';
    const title = found.querySelector('.sheet-head h2');
    const modal = !(found.matches('.leaves-room') && innerWidth >= ROOM);
    for (const [name, value] of [['role', 'dialog'], ['aria-modal', modal], ['aria-label', title?.textContent ?? key], ['tabindex', '-1']]) found.setAttribute(name, value);
    if (modal) document.body.append(shade);
    const first = [...found.querySelectorAll(FOCUSABLE)].find(one => seen(one) && !one.closest('.sheet-head'));
    const unfolds = first?.matches('[role=listbox], [role=combobox]');  // a list over the sheet, as soon as it has the focus
    (unfolds ? found : first ?? found).focus({preventScroll: true});
    tell('sheet', {key});
  }

  function closeSheet(key) {
    if (!sheet || (key && sheet.id !== `sheet-${key}`)) return;
    delete sheet.dataset.open;
    shade.remove();
    const back = opener;
    [sheet, opener] = [null, null];
    if (back?.isConnected) back.focus({preventScroll: true});
  }

  shade.addEventListener('click', () => closeSheet());
  addEventListener('click', event => {
    const button = event.target.closest?.('[class*="opens-"], [data-opens], [data-close]');
    if (!button) return;
    if ('close' in button.dataset) return closeSheet();
    const key = button.dataset.opens ?? [...button.classList].find(one => one.startsWith('opens-'))?.slice(6);
    if (key) openSheet(key, button);
  });

  function keepFocusIn(event) {
    const stops = [...sheet.querySelectorAll(FOCUSABLE)].filter(seen);
    if (!stops.length) return;
    const [first, end] = [stops[0], stops.at(-1)];
    if (!sheet.contains(document.activeElement)) { event.preventDefault(); first.focus(); }
    else if (event.shiftKey && document.activeElement === first) { event.preventDefault(); end.focus(); }
    else if (!event.shiftKey && document.activeElement === end) { event.preventDefault(); first.focus(); }
  }

  // --- keys ----------------------------------------------------------------------------------------------------------
  let goes = 0;  // when g was pressed
  const typing = target => target.closest?.('input:not([type=checkbox], [type=radio], [type=range]), textarea, select, [contenteditable=true], [role=combobox]');

  // Asked before the list hears of the key: by the time the page does, it is closed.
  let unfolded = false;
  addEventListener('keydown', event => { unfolded = event.target.matches?.(':is([role=combobox], [role=listbox])[aria-expanded=true]'); }, {capture: true});

  addEventListener('keydown', event => {
    if (event.key === 'Escape' && unfolded) return;  // it closes the list alone
    if (shade.isConnected && event.key === 'Tab') return keepFocusIn(event);
    if (sheet && event.key === 'Escape' && !event.defaultPrevented) { event.preventDefault(); return closeSheet(); }
    if (event.key === 'Escape') {
      const stop = document.getElementById('stop-answers');
      if (stop && seen(stop) && !stop.disabled) return stop.click();
      if (typing(event.target) && !event.defaultPrevented) return focusSection();  // the keys of the page count again
    }
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    const tabs = event.target.closest?.('[role=tablist]');
    if (tabs && /^(Arrow(Left|Right)|Home|End)$/.test(event.key)) return amongTabs(event, tabs);
    if (event.target.closest?.('#rail') && /^Arrow(Up|Down|Left|Right)$/.test(event.key)) return amongLinks(event);
    if (sheet) return;
    if (event.key === '/') {
      const search = [...document.querySelectorAll('[role=tabpanel] input[type=search]')].find(seen);
      if (search) { event.preventDefault(); search.focus(); search.select(); }
    } else if (event.key === '?') { event.preventDefault(); openSheet('keys'); }
    else if (event.key === 'g') goes = performance.now();
    else if (KEYS[event.key] && performance.now() - goes < 1500) { event.preventDefault(); goes = 0; go({section: KEYS[event.key]}); requestAnimationFrame(() => requestAnimationFrame(focusSection)); }
  });

  function amongTabs(event, tabs) {
    const all = [...tabs.querySelectorAll('[role=tab]:not([aria-disabled=true])')].filter(seen), at = all.indexOf(document.activeElement);
    const next = {ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1}[event.key];
    const one = all[(next + all.length) % all.length];
    if (!one) return;
    event.preventDefault();
    one.click();
    one.focus();
  }

  function amongLinks(event) {
    const all = [...document.querySelectorAll('#rail a')].filter(seen), at = all.indexOf(document.activeElement);
    event.preventDefault();
    all[(at + (/Up|Left/.test(event.key) ? -1 : 1) + all.length) % all.length]?.focus();
  }

  // What Tab reaches next is the first thing in the section.
  function focusSection() {
    const panel = [...document.querySelectorAll('#sections > [role=tabpanel]')].find(seen);
    if (!panel) return;
    panel.tabIndex = -1;
    panel.focus({preventScroll: true});
  }

  // --- the split between a list and what is chosen in it ----------------------------------------------------------------
  const MOST = 0.6, LEAST = 200;

  function splits() {
    for (const split of document.querySelectorAll('.split:not([data-split])')) {
      if (!seen(split) || split.children.length < 2) continue;
      split.dataset.split = '';
      const name = `lora-workbench-split-${split.id}`, kept = Number(localStorage.getItem(name));
      const bar = Object.assign(document.createElement('div'), {className: 'split-bar', tabIndex: 0});
      const set = width => {
        const most = Math.round(MOST * split.clientWidth), to = Math.round(Math.min(most, Math.max(LEAST, width)));
        split.style.setProperty('--list-width', `${to}px`);
        for (const [key, value] of [['valuenow', to], ['valuemin', LEAST], ['valuemax', most]]) bar.setAttribute(`aria-${key}`, value);
        return to;
      };
      const keep = width => localStorage.setItem(name, set(width));
      bar.setAttribute('role', 'separator');
      bar.setAttribute('aria-orientation', 'vertical');
      bar.setAttribute('aria-label', 'Width of the list');
      split.firstElementChild.after(bar);
      set(kept || split.firstElementChild.clientWidth);
      bar.addEventListener('pointerdown', down => {
        down.preventDefault();
        bar.setPointerCapture(down.pointerId);
        const from = split.getBoundingClientRect().left;
        const move = event => keep(event.clientX - from);
        bar.addEventListener('pointermove', move);
        bar.addEventListener('pointerup', () => bar.removeEventListener('pointermove', move), {once: true});
      });
      bar.addEventListener('keydown', event => {
        const by = {ArrowLeft: -24, ArrowRight: 24}[event.key];
        if (by) { event.preventDefault(); keep(split.firstElementChild.clientWidth + by); }
      });
    }
  }

  // --- charts: one look for all -----------------------------------------------------------------------------------------
  // Okabe and Ito's colours, which survive colour blindness, darkened or lightened for contrast in each theme.
  const COLOURS = {
    light: ['#0f766e', '#b45309', '#1d4ed8', '#a21caf', '#4d7c0f', '#be123c', '#0369a1', '#57534e'],
    dark: ['#2dd4bf', '#fbbf24', '#93c5fd', '#f0abfc', '#a3e635', '#fda4af', '#7dd3fc', '#d6d3d1'],
  };
  const TEAL = [[0, '#eef6f5'], [.5, '#2dd4bf'], [1, '#0f766e']];  // from little to much; Plotly's own begin in red
  const isDark = () => document.body.classList.contains('dark');

  function plotTemplate() {
    const dark = isDark(), text = dark ? '#cbd5e1' : '#334155', grid = dark ? '#263145' : '#e2e8f0';
    const axis = {gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true, title: {standoff: 8, font: {size: 12}}, tickfont: {size: 12}};
    return {layout: {
      font: {family: getComputedStyle(document.body).fontFamily, size: 12, color: text}, colorway: COLOURS[dark ? 'dark' : 'light'],
      paper_bgcolor: 'transparent', plot_bgcolor: 'transparent', xaxis: axis, yaxis: axis,
      margin: {l: 56, r: 16, t: 32, b: 44}, title: {font: {size: 13}, x: 0, xanchor: 'left'}, hoverlabel: {bgcolor: dark ? '#1c2739' : '#fff', font: {size: 12, color: text}},
      modebar: {bgcolor: 'transparent', color: dark ? '#94a3b8' : '#64748b', activecolor: text},
      legend: {orientation: 'h', y: 1.02, yanchor: 'bottom', x: 0, font: {size: 12}}, colorscale: {sequential: dark ? 'Viridis' : TEAL},
    }};
  }

  let plotly = null;
  function bringPlotly() {
    // Half a second of the browser's time, so not before there is a chart to be seen.
    plotly ??= new Promise((done, failed) => document.head.append(Object.assign(document.createElement('script'),
      {id: 'plotly-script', src: '/workbench/plotly.min.js', onload: () => done(window.Plotly), onerror: failed})));
    return plotly;
  }

  // --- what the page opens with ------------------------------------------------------------------------------------------
  let arrived = false;
  function look() {
    splits();
    // Gradio may make anew what it has shown for the first time, or beside a part that comes or goes: what is open stays open.
    if (sheet && !sheet.isConnected) openSheet(sheet.id.replace(/^sheet-/, ''), opener);
    // Gradio calls the empty place of each chat a landmark of the page.
    for (const one of document.querySelectorAll('.placeholder-content[role=complementary]')) one.removeAttribute('role');
    if (!arrived && sectionTab('home') && document.querySelector('#rail [data-section]')) { arrived = true; show(); }
  }
  let looking = 0;
  const begin = () => {
    new MutationObserver(() => { looking ||= requestAnimationFrame(() => { looking = 0; look(); }); })
      .observe(document.body, {childList: true, subtree: true, attributes: true, attributeFilter: ['style', 'class']});
    look();
  };
  // Gradio may bring this script after the document is there.
  if (document.readyState === 'loading') addEventListener('DOMContentLoaded', begin); else begin();

  return {route, address, go, choose, granted, openSheet, closeSheet, plotTemplate, bringPlotly, wished: {}, colours: () => COLOURS[isDark() ? 'dark' : 'light'], seen};
})();
