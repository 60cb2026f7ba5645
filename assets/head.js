// The masthead and what is under way look for news by themselves. Gradio hears of it only when the registry has changed: each
// of its events walks all components of the page, which would cost a tenth of a processor core for nothing. The lists hear of
// it here, and ask for their own rows.
let seen = '', timer = null, asking = false, first = true;
const away = new Set(JSON.parse(sessionStorage.getItem('lora-workbench-away') || '[]')), announced = new Set();

async function ask() {
  clearTimeout(timer);
  let pause = 1000;
  if ((document.visibilityState === 'visible' || notifies()) && !asking) {
    asking = true;
    try {
      const now = await server.news(seen);
      if (now.html !== props.value) { props.value = now.html; tidy(); announce(now.html); }
      first = false;
      if (now.changes) {
        seen = now.changes;
        trigger('submit');
        dispatchEvent(new CustomEvent('workbench-changed'));
      }
    } catch (error) {
      console.warn('The page could not ask for news; trying again.', error);
      pause = 4000;
    }
    asking = false;
  }
  timer = setTimeout(ask, pause);
}

function tidy() {
  for (const one of element.querySelectorAll('[data-notice]')) if (away.has(one.dataset.notice)) one.remove();
}

const notifies = () => 'Notification' in window && Notification.permission === 'granted' && localStorage.getItem('lora-workbench-notify') === 'on';

function announce(html) {
  // What ended while the page was not looked at is told by the desktop, once.
  const notices = new DOMParser().parseFromString(html, 'text/html').querySelectorAll('[data-notice]');
  for (const one of notices) {
    const key = one.dataset.notice, title = one.querySelector('b').textContent, state = one.querySelector('.state').textContent;
    if (!announced.has(key) && !first && document.visibilityState !== 'visible' && notifies())
      new Notification(`${title}: ${state}`, {body: one.querySelector('.notice-why').textContent, icon: '/workbench/icon.svg', tag: key});
    announced.add(key);
  }
}

function say(sentence) {
  const line = Object.assign(document.createElement('div'), {className: 'notice said', textContent: sentence});
  line.setAttribute('role', 'status');
  element.querySelector('.activity')?.prepend(line);
  setTimeout(() => line.remove(), 8000);
}

element.addEventListener('click', async event => {
  const end = event.target.closest('[data-end]'), dismiss = event.target.closest('[data-dismiss]');
  if (dismiss) {
    const notice = dismiss.closest('[data-notice]');
    away.add(notice.dataset.notice);
    sessionStorage.setItem('lora-workbench-away', JSON.stringify([...away].slice(-50)));
    notice.remove();
  }
  if (!end || end.disabled) return;
  end.disabled = true;
  const [what, number] = end.dataset.end.split('-');
  const sentence = await server.end(what, Number(number)).catch(error => `The page could not ask for it: ${error.message ?? error}`);
  await ask();
  say(sentence);
});

document.addEventListener('visibilitychange', ask);
addEventListener('workbench-look', ask);
ask();
