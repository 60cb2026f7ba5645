// Findings by row: each row's name leads to the row, among the rows of the data set.
element.addEventListener('click', event => {
  const wanted = event.target.closest('[data-row]');
  if (!wanted) return;
  const {name} = window.workbench.route(), row = Number(wanted.dataset.row);
  sessionStorage.setItem('lora-workbench-rows', JSON.stringify({name, row, find: true}));
  dispatchEvent(new CustomEvent('workbench-row'));
  [...document.querySelectorAll('#split-data [role=tab]')].filter(one => one.textContent.trim() === 'Rows and tokens').at(-1)?.click();
});
