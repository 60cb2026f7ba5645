// Pickers for options whose text names several things: target modules by kind of layer, alerts, and values to sweep.
// They stand before options.js, whose functions they use.
let layers = {kinds: [], choices: {}, hits: {}, words: {}};
const namesIn = text => String(text).split(',').map(one => one.trim()).filter(Boolean);
const short = count => count >= 1e6 ? `${(count / 1e6).toFixed(count >= 1e7 ? 0 : 1)} M` : count >= 1e3 ? `${Math.round(count / 1e3)} k` : `${count}`;

function picking(option, made, about) {
  // The text stays the value; what is picked is written into it.
  const pick = names => { const text = names.join(','); made.input.value = text; set(option, text); mark(); draw(); commit(0); };
  const draw = () => about.draw(namesIn(made.input.value), pick);
  const before = made.write;
  made.write = value => { before(value); draw(); };
  made.input.addEventListener('input', draw);
  made.row.classList.add('wide');
  return {made, draw};
}

function checkbox(checked, label, ...inner) {
  const box = make('input', {type: 'checkbox', checked, 'aria-label': label});
  return [box, make('label', {className: 'picked'}, box, ...inner)];
}

function redrawn(list, parts) {
  // Whoever goes through the list by keyboard stays where they are.
  const at = [...list.querySelectorAll('input, button')].indexOf(document.activeElement);
  list.replaceChildren(...parts);
  if (at >= 0) [...list.querySelectorAll('input, button')][at]?.focus({preventScroll: true});
}

function targetsField(option, made) {
  const chips = make('span', {className: 'chips', role: 'group', 'aria-label': 'Usual choices of target modules'});
  const list = make('div', {className: 'picks', role: 'group', 'aria-label': 'Kinds of layers'});
  made.row.querySelector('.option-box').before(make('div', {className: 'target-picks'}, chips, list));
  const meant = names => names.flatMap(one => layers.words[one] ?? [one]);  // attention, and other words for usual choices
  const has = (names, [kind, , , head]) => names.some(one => one === kind || kind.endsWith(`.${one}`)) || (!head && names.includes('all-linear'));
  const {draw} = picking(option, made, {draw(written, pick) {
    const names = meant(written);
    redrawn(chips, Object.entries(layers.choices).map(([label, text]) => {
      const chip = make('button', {type: 'button', className: 'small', textContent: label, title: layers.hits[label], 'aria-pressed': names.join(',') === text});
      chip.addEventListener('click', () => pick(namesIn(text)));
      return chip;
    }));
    redrawn(list, layers.kinds.map(kind => {
      const [name, count, parameters, head] = kind;
      const [box, label] = checkbox(has(names, kind), name, make('b', {textContent: name}),
        make('small', {textContent: `${count.toLocaleString('en')} layer${count === 1 ? '' : 's'} · ${short(parameters)}`}), head ? make('small', {textContent: 'output head'}) : null);
      label.title = `${parameters.toLocaleString('en')} trainable parameters`;
      box.addEventListener('change', () => pick(layers.kinds.filter(one => one[0] === name ? box.checked : has(names, one)).map(one => one[0])));
      return label;
    }));
  }});
  const told = detail => { layers = detail; draw(); };
  addEventListener('workbench-targets', event => told(event.detail));
  const there = document.querySelector('#plan [data-targets]');
  if (there) layers = JSON.parse(there.dataset.targets);
  return made;
}

function severalField(option, made) {
  const list = make('div', {className: 'picks', role: 'group', 'aria-label': option.label});
  made.row.querySelector('.option-box').before(list);
  made.row.classList.add('picked-only');
  picking(option, made, {draw(names, pick) {
    redrawn(list, option.several.map(([name, meaning]) => {
      const [box, label] = checkbox(names.includes(name), name, make('b', {textContent: name}), make('small', {textContent: meaning}));
      box.addEventListener('change', () => pick(option.several.map(([one]) => one).filter(one => one === name ? box.checked : names.includes(one))));
      return label;
    }));
  }});
  return made;
}

function sweepSection() {
  const rows = make('div', {className: 'sweeps'}), message = make('p', {className: 'option-help', role: 'status'});
  const add = make('select', {'aria-label': 'Add an option to sweep'});
  const body = make('div', {className: 'sweep', id: 'group-Sweep'},
    make('p', {className: 'option-help', textContent: 'Several values for any option. Every combination becomes an adapter; they train at once on the one base.'}), rows, add, message);
  const element = folding('Sweep', body);
  let shape = '';

  function change(name, values) {
    if (values) said.sweep[name] = values; else delete said.sweep[name];
    mark();
    commit(0);
  }

  function entry(name) {
    const option = every.get(name), values = said.sweep[name] ?? [], list = `sweep-values-${name}`;
    const input = make('input', {type: 'text', placeholder: 'value, then Enter', autocomplete: 'off', 'aria-label': 'Add a value'});
    const known = option.choices.length ? option.choices.map(([value]) => value) : option.kind === 'bool' ? ['true', 'false'] : [];
    if (known.length) input.setAttribute('list', list);
    const take = () => {
      const value = input.value.trim(), wrong = value && fault(option, value);
      message.textContent = wrong ? `${option.label} ${wrong}.` : '';
      if (!value || wrong) return;
      input.value = '';
      if (!values.includes(value)) change(name, [...values, value]);
      rows.querySelector(`[data-sweep="${name}"] input`)?.focus();
    };
    input.addEventListener('keydown', event => {
      if (event.key === 'Enter') { event.preventDefault(); take(); }
      else if (event.key === 'Backspace' && !input.value && values.length) { change(name, values.slice(0, -1)); rows.querySelector(`[data-sweep="${name}"] input`)?.focus(); }
    });
    input.addEventListener('blur', take);
    const chips = values.map(value => {
      const off = make('button', {type: 'button', textContent: '×', 'aria-label': `Remove ${value}`});
      off.addEventListener('click', () => { change(name, values.filter(one => one !== value)); rows.querySelector(`[data-sweep="${name}"] input`)?.focus(); });
      return make('span', {className: 'value-chip'}, make('span', {textContent: value}), off);
    });
    const out = make('button', {type: 'button', className: 'small', textContent: 'Remove', 'aria-label': 'Remove from the sweep'});
    out.addEventListener('click', () => { change(name, null); add.focus(); });
    const row = make('div', {className: 'sweep-row', role: 'group', 'aria-label': `Sweep of ${option.label}`}, make('b', {textContent: option.label}),
      make('span', {className: 'value-chips'}, ...chips, input), out, known.length ? make('datalist', {id: list}, ...known.map(value => make('option', {value}))) : null);
    row.dataset.sweep = name;
    return row;
  }

  add.addEventListener('change', () => {
    const name = add.value;
    if (!name) return;
    change(name, []);
    rows.querySelector(`[data-sweep="${name}"] input`)?.focus();
  });

  function mark_() {
    const kept = JSON.stringify(said.sweep), left = [...every.values()].filter(one => shown(one) && !(one.name in said.sweep));
    const counted = Object.values(said.sweep).filter(values => values.length), count = counted.reduce((all, values) => all * values.length, 1);
    element.count.textContent = counted.length ? `${count} combination${count === 1 ? '' : 's'}` : '';
    if (shape === kept + left.length) return;
    shape = kept + left.length;
    rows.replaceChildren(...Object.keys(said.sweep).filter(name => every.has(name)).map(entry));
    add.replaceChildren(make('option', {value: '', textContent: 'Add an option to sweep …'}), ...left.map(one => make('option', {value: one.name, textContent: one.label})));
  }
  return {element, mark: mark_};
}
