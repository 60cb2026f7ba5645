// Holds what an address wishes of a section, and tells the server of each such wish.
const take = now => {
  const wished = now.section === fixed.section ? now[fixed.parameter] : null;
  if (!wished) return;
  props.value = wished;
  // Gradio may set what it has just laid out to its first value once more: who fills a section for the first time looks here.
  window.workbench.wished[`${fixed.section} ${fixed.parameter}`] = wished;
  trigger('submit');
  window.workbench.granted(fixed.parameter);  // or a reload would wish for it again
};
addEventListener('workbench-route', event => take(event.detail));
take(window.workbench.route());
