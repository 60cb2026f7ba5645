// Buttons that copy the text beside them.
element.addEventListener('click', async event => {
  const button = event.target.closest('[data-copy]');
  if (!button) return;
  const text = button.parentElement.querySelector('pre');
  try {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = 'Copied';
  } catch {
    // Without https, or where it is not allowed: mark it, so that Ctrl+C takes it.
    getSelection().selectAllChildren(text);
    button.textContent = 'Marked: press Ctrl+C';
  }
  setTimeout(() => { button.textContent = 'Copy'; }, 3000);
});
