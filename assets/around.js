// What stands around the page: its colours and density as they are set, the tab's title and icon, notifications, and what makes
// it an app that a browser can install. head.js brings the news.
(() => {
  const NAME = 'LoRA Workbench', ICON = '/workbench/icon.svg';
  const KEPT = 'lora-workbench-look', CHOSEN = 'lora-workbench-theme', OVER = 'lora-workbench-theme-over';
  const systemDark = matchMedia('(prefers-color-scheme: dark)');
  let look = {theme: 'system', density: 'auto', notifications: true, ...JSON.parse(localStorage.getItem(KEPT) ?? '{}')};

  // Colours and density. What the button in the masthead chose counts in this browser until the setting is changed.
  function isDark() {
    const chosen = localStorage.getItem(CHOSEN), over = localStorage.getItem(OVER) ?? 'system';
    const theme = chosen && over === look.theme ? chosen : look.theme;
    return theme === 'system' ? systemDark.matches : theme === 'dark';
  }

  function show() {
    const dark = isDark(), was = document.body.classList.contains('dark');
    document.body.classList.toggle('dark', dark);
    document.body.dataset.density = look.density === 'auto' ? (innerWidth < 1500 ? 'compact' : 'comfortable') : look.density;
    if (dark !== was) dispatchEvent(new Event('workbench-theme'));
  }

  function takeOver(wanted) {
    if (JSON.stringify({...look, ...wanted}) === JSON.stringify(look)) return;
    look = {...look, ...wanted};
    localStorage.setItem(KEPT, JSON.stringify(look));
    show();
  }

  if (document.body) show();
  addEventListener('DOMContentLoaded', show);
  addEventListener('resize', show);
  systemDark.addEventListener('change', show);
  addEventListener('click', event => {
    if (!event.target.closest?.('#theme-button')) return;
    localStorage.setItem(CHOSEN, isDark() ? 'light' : 'dark');
    localStorage.setItem(OVER, look.theme);
    show();
  });

  // An app to install. A manifest is fetched without the cookie that holds the token unless its link says otherwise.
  function link(rel, href, about = {}) {
    const one = Object.assign(document.createElement('link'), {rel, href, ...about});
    document.head.append(one);
    return one;
  }
  document.querySelectorAll('link[rel=manifest], link[rel~=icon]').forEach(one => one.remove());
  link('manifest', '/workbench/manifest.webmanifest', {crossOrigin: 'use-credentials'});
  link('apple-touch-icon', '/workbench/icons/icon-192.png');
  const favicon = link('icon', ICON, {type: 'image/svg+xml'});

  // Title and icon while something trains.
  let drawn = '', plainIcon = null;

  async function badge(running) {
    const wanted = running ? String(Math.round(50 * (running.share ?? 0))) : '';
    if (wanted === drawn) return;
    drawn = wanted;
    navigator[running ? 'setAppBadge' : 'clearAppBadge']?.(running?.count).catch(() => {});  // not every system has badges
    if (!running) { favicon.href = ICON; return; }
    plainIcon ??= fetch(ICON).then(answer => answer.text());
    const round = 2 * Math.PI * 6, done = round * (running.share ?? 0);
    const ring = `<circle cx="23" cy="23" r="9" fill="#fff"/><circle cx="23" cy="23" r="6" fill="none" stroke="#cbd5e1" stroke-width="5"/>`
      + `<circle cx="23" cy="23" r="6" fill="none" stroke="#ea580c" stroke-width="5" stroke-dasharray="${done} ${round}" transform="rotate(-90 23 23)"/>`;
    const text = (await plainIcon).replace('</svg>', ring + '</svg>');
    if (drawn === wanted) favicon.href = 'data:image/svg+xml,' + encodeURIComponent(text);
  }

  function title(running) {
    if (!running) return NAME;
    const share = running.share === null ? [] : [`${Math.floor(100 * running.share)} %`];
    return [...share, running.name, NAME].join(' · ');
  }

  // What ended while nobody looked. Browsers let a page ask for permission only after a click.
  function tell(ended) {
    if (!look.notifications || !document.hidden || globalThis.Notification?.permission !== 'granted') return;
    for (const one of ended) {
      const shown = new Notification(one.said, {body: NAME, tag: one.key, icon: '/workbench/icons/icon-192.png'});
      shown.onclick = () => { window.focus(); shown.close(); };
    }
  }

  let active = 0;
  addEventListener('click', () => {
    if (!active || !look.notifications || globalThis.Notification?.permission !== 'default') return;
    if (localStorage.getItem('lora-workbench-asked')) return;
    localStorage.setItem('lora-workbench-asked', 'yes');
    Notification.requestPermission();
  });

  addEventListener('workbench-news', ({detail}) => {
    if (detail.look) takeOver(detail.look);
    active = detail.active.length;
    const wanted = title(detail.running);
    if (document.title !== wanted) document.title = wanted;
    badge(detail.running);
    tell(detail.ended);
  });
})();
