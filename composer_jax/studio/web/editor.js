// A dialog to draw a condition in place, or to choose the colours of a palette.
// value: {opened, name, source} and {side, layer, behind, paints, hint} or {colours}
const dialog = element.querySelector('dialog');
let give = () => ({});

function close() {
  dialog.close();
}

function use() {
  const made = give();
  dialog.close();
  props.value = {name: props.value.name, source: props.value.source, ...made};
  trigger('submit');
}

function frame(title, hint, ...inside) {
  dialog.setAttribute('aria-label', `Edit ${title}`);
  dialog.replaceChildren(
    el('h2', {}, `Edit ${title}`),
    el('p', {class: 'hint'}, hint),
    ...inside.filter(Boolean),
    el(
      'div',
      {class: 'row end'},
      el('button', {type: 'button', onclick: close}, 'Discard'),
      el('button', {type: 'button', class: 'primary', onclick: use}, 'Use it'),
    ),
  );
}

// ---- Palettes -----------------------------------------------------------------

function palette(value) {
  const list = el('ul', {class: 'colours', 'aria-label': 'Colours'});
  const bar = el('div', {class: 'bar', role: 'img', 'aria-label': 'Shares of the colours'});
  const rows = () => [...list.children];

  function read() {
    return rows().map((row) => ({
      colour: row.querySelector('[type=color]').value,
      weight: Number(row.querySelector('[type=range]').value),
    }));
  }

  function update() {
    const all = read();
    bar.replaceChildren(
      ...all.map(({colour, weight}) => {
        const part = el('span', {});
        part.style.background = colour;
        part.style.flexGrow = weight;
        return part;
      }),
    );
    rows().forEach((row, index) => {
      const number = index + 1;
      row.querySelector('[type=color]').setAttribute('aria-label', `Colour ${number}`);
      row
        .querySelector('[type=range]')
        .setAttribute('aria-label', `Weight of colour ${number}`);
      row.querySelector('button').setAttribute('aria-label', `Remove colour ${number}`);
      row.querySelector('button').disabled = all.length === 1;
    });
    more.disabled = all.length >= 12;
  }

  function add({colour, weight}) {
    const range = el('input', {type: 'range', min: 1, max: 100, oninput: update});
    range.value = weight;
    const row = el(
      'li',
      {},
      el('input', {type: 'color', value: colour, oninput: update}),
      range,
      el(
        'button',
        {
          type: 'button',
          onclick: () => {
            row.remove();
            update();
            list.querySelector('input').focus();
          },
        },
        '×',
      ),
    );
    list.append(row);
    return row;
  }

  const more = el(
    'button',
    {
      type: 'button',
      onclick: () => {
        const row = add({colour: '#888888', weight: 30});
        update();
        row.querySelector('input').focus();
      },
    },
    'Add a colour',
  );
  value.colours.forEach(add);
  update();
  frame(value.name, 'Colours, and how much there is of each.', bar, list, more);
  give = () => ({colours: read()});
}

// ---- Drawings -----------------------------------------------------------------

function rgba(paint, gray) {
  if (paint[1] === 'transparent') return [0, 0, 0, 0];
  if (paint[0] === 'gray') return [gray, gray, gray, 255];
  return [1, 3, 5].map((i) => parseInt(paint[1].slice(i, i + 2), 16)).concat(255);
}

function drawing(value) {
  const side = value.side;
  const canvas = el('canvas', {
    width: side,
    height: side,
    tabindex: 0,
    role: 'application',
    'aria-label': `Drawing of ${value.name}: arrow keys move the brush, space paints`,
  });
  const context = canvas.getContext('2d', {willReadFrequently: true});
  const cursor = el('span', {class: 'cursor', 'aria-hidden': 'true'});
  const said = el('output', {class: 'said', 'aria-live': 'polite'});
  const undone = [];
  let paint = value.paints[0];
  let at = {x: side >> 1, y: side >> 1};
  let last = null;

  const size = el('input', {
    type: 'range',
    min: 1,
    max: Math.max(2, side >> 2),
    'aria-label': 'Size of the brush in pixels',
    oninput: () => place(),
  });
  size.value = value.name === 'sketch' ? 1 : Math.max(2, side >> 4);
  const gray = el('input', {type: 'range', min: 0, max: 255, 'aria-label': 'Gray'});
  gray.value = 255;

  function place() {
    const unit = 100 / side;
    const width = Number(size.value);
    cursor.style.width = cursor.style.height = `${width * unit}%`;
    cursor.style.left = `${(at.x - Math.floor(width / 2)) * unit}%`;
    cursor.style.top = `${(at.y - Math.floor(width / 2)) * unit}%`;
  }

  // Hard edges: ids and lines have no values between.
  function stamp(x, y) {
    const width = Number(size.value);
    const low = -Math.floor(width / 2);
    const colour = rgba(paint, Number(gray.value));
    const middle = low + (width - 1) / 2;
    const pixels = context.getImageData(0, 0, side, side);
    for (let v = low; v < low + width; v++) {
      for (let u = low; u < low + width; u++) {
        const [px, py] = [x + u, y + v];
        const inside = (u - middle) ** 2 + (v - middle) ** 2 <= (width / 2) ** 2 + 0.3;
        if (!inside || px < 0 || py < 0 || px >= side || py >= side) continue;
        pixels.data.set(colour, 4 * (py * side + px));
      }
    }
    context.putImageData(pixels, 0, 0);
  }

  function line(from, to) {
    const count = Math.max(Math.abs(to.x - from.x), Math.abs(to.y - from.y), 1);
    for (let i = 0; i <= count; i++) {
      stamp(
        Math.round(from.x + ((to.x - from.x) * i) / count),
        Math.round(from.y + ((to.y - from.y) * i) / count),
      );
    }
  }

  function keep() {
    undone.push(context.getImageData(0, 0, side, side));
    if (undone.length > 30) undone.shift();
    undo.disabled = false;
  }

  function point(event) {
    const box = canvas.getBoundingClientRect();
    const inside = (x) => Math.min(side - 1, Math.max(0, Math.floor(x)));
    return {
      x: inside(((event.clientX - box.left) / box.width) * side),
      y: inside(((event.clientY - box.top) / box.height) * side),
    };
  }

  canvas.addEventListener('pointerdown', (event) => {
    if (event.button) return;
    event.preventDefault();
    canvas.focus();
    canvas.setPointerCapture(event.pointerId);
    keep();
    at = last = point(event);
    line(at, at);
    place();
  });
  canvas.addEventListener('pointermove', (event) => {
    at = point(event);
    if (last) {
      line(last, at);
      last = at;
    }
    place();
  });
  for (const end of ['pointerup', 'pointercancel']) {
    canvas.addEventListener(end, () => (last = null));
  }
  canvas.addEventListener('keydown', (event) => {
    const moves = {
      ArrowLeft: [-1, 0],
      ArrowRight: [1, 0],
      ArrowUp: [0, -1],
      ArrowDown: [0, 1],
    };
    if (event.key === ' ') {
      keep();
      line(at, at);
      said.textContent = `painted at ${at.x + 1}, ${at.y + 1}`;
    } else if (event.key in moves) {
      const before = at;
      const stride = event.shiftKey ? Math.max(1, Number(size.value) >> 1) : 1;
      const inside = (x) => Math.min(side - 1, Math.max(0, x));
      const [dx, dy] = moves[event.key];
      at = {x: inside(at.x + stride * dx), y: inside(at.y + stride * dy)};
      if (event.ctrlKey) {
        keep();
        line(before, at);
      }
      place();
      said.textContent = `at ${at.x + 1}, ${at.y + 1}`;
    } else {
      return;
    }
    event.preventDefault();
  });

  const undo = el(
    'button',
    {
      type: 'button',
      disabled: true,
      onclick: () => {
        context.putImageData(undone.pop(), 0, 0);
        undo.disabled = !undone.length;
      },
    },
    'Undo',
  );
  const fill = el(
    'button',
    {
      type: 'button',
      onclick: () => {
        keep();
        const whole = context.getImageData(0, 0, side, side);
        const colour = rgba(paint, Number(gray.value));
        for (let i = 0; i < whole.data.length; i += 4) whole.data.set(colour, i);
        context.putImageData(whole, 0, 0);
      },
    },
    'Fill all',
  );

  const paints = value.paints.map((each, index) => {
    const swatch = el('span', {class: `swatch ${each[1]}`});
    if (each[1] !== 'transparent') swatch.style.background = each[1];
    return el(
      'label',
      {class: 'paint', title: each[0]},
      el('input', {
        type: 'radio',
        name: 'paint',
        checked: index === 0,
        'aria-label': each[0],
        onchange: () => (paint = each),
      }),
      swatch,
      value.paints.length < 5 && each[0],
    );
  });
  const graySlider =
    value.paints[0][0] === 'gray' &&
    el('label', {class: 'slider'}, el('span', {}, 'Gray'), gray);
  const stage = el(
    'div',
    {class: `stage ${value.name}`},
    value.behind && el('img', {src: value.behind, alt: '', class: 'behind'}),
    canvas,
    cursor,
  );
  frame(
    value.name,
    value.hint,
    stage,
    said,
    el('div', {class: 'row paints', role: 'radiogroup', 'aria-label': 'Paint'}, ...paints),
    graySlider,
    el('label', {class: 'slider'}, el('span', {}, 'Brush'), size),
    el('div', {class: 'row'}, undo, fill),
  );
  place();
  const image = new Image();
  image.onload = () => {
    context.drawImage(image, 0, 0);
    dialog.dataset.ready = value.name;
  };
  image.src = value.layer;
  give = () => ({layer: canvas.toDataURL('image/png')});
}

function render() {
  const value = props.value;
  if (!value?.opened) return; // What was made here is a value, too.
  delete dialog.dataset.ready;
  if (value.colours) palette(value);
  else drawing(value);
  if (!dialog.open) dialog.showModal();
  dialog.querySelector('canvas, input')?.focus();
}

watch('value', render);
