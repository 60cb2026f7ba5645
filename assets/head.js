// The masthead and what is under way look for news by themselves. Gradio hears of it only when the registry has changed: each
// of its events walks all components of the page, which would cost a tenth of a processor core for nothing.
let seen = '', timer = null, asking = false;

async function ask() {
  clearTimeout(timer);
  let pause = 1000;
  if (document.visibilityState === 'visible' && !asking) {
    asking = true;
    try {
      const now = await server.news(seen);
      if (now.html !== props.value) props.value = now.html;
      if (now.changes) { seen = now.changes; trigger('submit'); }
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
