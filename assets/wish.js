// Holds what an address wishes of a section, and tells the server of each such wish.
const take = now => {
  const wished = now.section === fixed.section ? now[fixed.parameter] : null;
  if (!wished) return;
  props.value = wished;
  trigger('submit');
  window.workbench.granted(fixed.parameter);  // or a reload would wish for it again
};
addEventListener('workbench-route', event => take(event.detail));
take(window.workbench.route());
