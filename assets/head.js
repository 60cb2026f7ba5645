// The masthead and what is under way look for news by themselves. Gradio hears of it only when the registry has changed: each
// of its events walks all components of the page, which would cost a tenth of a processor core for nothing.
// A page out of sight asks now and then, for its title, its icon and notifications.
let seen = '', followed = [], timer = null, asking = false;

async function ask() {
  clearTimeout(timer);
  const inSight = document.visibilityState === 'visible';
  let pause = inSight ? 1000 : 5000;
  if (!asking) {
    asking = true;
    try {
      const now = await server.news({seen, followed});
      followed = now.active;
      dispatchEvent(new CustomEvent('workbench-news', {detail: now}));
      if (inSight && now.html !== props.value) props.value = now.html;
      if (inSight && now.changes) { seen = now.changes; trigger('submit'); }
    } catch (error) {
      console.warn('The page could not ask for news; trying again.', error);
      pause = 4000;
    }
    asking = false;
  }
  timer = setTimeout(ask, pause);
}

document.addEventListener('visibilitychange', ask);
ask();
