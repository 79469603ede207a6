// The board: for each condition, which image it comes from, how strongly and when.
// value: {name: {source, strength, start, end}}
// shown: {sources: [{key, name, image}],
//         rows: [{name, what, said, edit, strongest, options}]}
const none = {source: '', strength: 1, start: 0, end: 1};
const open = new Set();

function choice(name) {
  return {...none, ...((props.value || {})[name] || {})};
}

function choose(name, change) {
  props.value = {...props.value, [name]: {...choice(name), ...change}};
}

function share(x) {
  return `${Math.round(100 * x)} %`;
}

function summary(now) {
  const whole = now.start === 0 && now.end === 1;
  const when = whole ? 'all the time' : `${share(now.start)} to ${share(now.end)}`;
  return `Strength ${now.strength}, ${when}`;
}

function slider(row, field, label, most, step, text) {
  const now = choice(row.name);
  const output = el('output', {}, text(now[field]));
  const input = el('input', {
    type: 'range',
    min: 0,
    max: most,
    step,
    value: now[field],
    'aria-label': `${label} of ${row.name}`,
    oninput: () => {
      const change = {[field]: Number(input.value)};
      const before = choice(row.name);
      if (field === 'start' && change.start > before.end) change.end = change.start;
      if (field === 'end' && change.end < before.start) change.start = change.end;
      choose(row.name, change);
      const card = input.closest('.card');
      const after = choice(row.name);
      card.querySelector('summary').textContent = summary(after);
      for (const other of card.querySelectorAll('input[type=range]')) {
        other.value = after[other.dataset.field];
        const shown = other.dataset.field === 'strength' ? String : share;
        other.nextElementSibling.textContent = shown(after[other.dataset.field]);
      }
    },
  });
  input.max = most;
  input.step = step;
  input.value = now[field];
  input.dataset.field = field;
  return el('label', {class: 'slider'}, el('span', {}, label), input, output);
}

function option(row, key, label, image, mark) {
  const input = el('input', {
    type: 'radio',
    name: `from-${row.name}`,
    value: key,
    checked: choice(row.name).source === key,
    'aria-label': `${row.name}: ${label}`,
    onchange: () => {
      choose(row.name, {source: key});
      input.closest('.card').classList.toggle('off', key === '');
    },
  });
  const inside = image
    ? el('img', {src: image, alt: ''})
    : el('span', {class: 'nothing'}, label);
  return el(
    'label',
    {class: 'option', title: label},
    input,
    inside,
    mark && el('span', {class: 'mark'}, mark),
  );
}

function card(row) {
  const now = choice(row.name);
  const options = row.options.length || !row.said ? [option(row, '', 'off', null, '')] : [];
  for (const each of row.options) {
    options.push(option(row, each.key, each.label, each.image, each.mark));
  }
  const details = el(
    'details',
    {
      ontoggle: () => (details.open ? open.add(row.name) : open.delete(row.name)),
    },
    el('summary', {}, summary(now)),
    slider(row, 'strength', 'Strength', row.strongest, 0.05, String),
    slider(row, 'start', 'From', 1, 0.05, share),
    slider(row, 'end', 'Until', 1, 0.05, share),
  );
  details.open = open.has(row.name);
  return el(
    'section',
    {class: `card ${now.source ? '' : 'off'}`, 'aria-label': row.name},
    el(
      'header',
      {},
      el('h3', {}, row.name),
      row.edit &&
        el(
          'button',
          {
            type: 'button',
            'aria-label': `Edit ${row.name}`,
            onclick: () => trigger('edit', {name: row.name}),
          },
          'Edit',
        ),
    ),
    el('p', {}, row.what),
    options.length > 0 &&
      el(
        'div',
        {class: 'options', role: 'radiogroup', 'aria-label': `${row.name} from`},
        ...options,
      ),
    details,
  );
}

function source(each, index) {
  return el(
    'li',
    {},
    el('img', {src: each.image, alt: `Image ${index + 1}: ${each.name}`}),
    el('span', {class: 'mark'}, String(index + 1)),
    el(
      'button',
      {
        type: 'button',
        class: 'remove',
        'aria-label': `Remove image ${index + 1}, ${each.name}`,
        onclick: () => trigger('remove', {key: each.key}),
      },
      '×',
    ),
  );
}

function render() {
  const shown = props.shown || {sources: [], rows: []};
  const focused = element.contains(document.activeElement)
    ? document.activeElement.getAttribute('aria-label')
    : null;
  const root = element.querySelector('.board');
  root.replaceChildren(
    ...(shown.sources.length
      ? [el('ul', {class: 'sources', 'aria-label': 'Images'}, ...shown.sources.map(source))]
      : []),
    el('div', {class: 'cards'}, ...shown.rows.map(card)),
  );
  if (focused) root.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}

watch(['value', 'shown'], render);
render();
