// What was made: the image large, others small, and what to do with it.
// value: {images: [{id, png, recipe, seed, seconds}], sources: [{name, image}]}
// look: {image, done, text} while something is being made, or {}.
const root = element.querySelector('.result');
let chosen = null;
let compared = null;
let shareOfSource = 50;

function images() {
  return (props.value && props.value.images) || [];
}

function current() {
  const all = images();
  return all.find((each) => each.id === chosen) || all[all.length - 1];
}

function progress(look) {
  const done = Math.round(100 * look.done);
  const bar = el('span', {});
  bar.style.width = `${done}%`;
  return el(
    'div',
    {
      class: 'progress',
      role: 'progressbar',
      'aria-label': 'Progress',
      'aria-valuemin': 0,
      'aria-valuemax': 100,
      'aria-valuenow': done,
      'aria-valuetext': look.text,
    },
    bar,
  );
}

function comparison(image, sources) {
  const source = sources[Math.min(compared, sources.length - 1)];
  const over = el('img', {src: source.image, alt: `Source: ${source.name}`, class: 'over'});
  const cut = () => (over.style.clipPath = `inset(0 ${100 - shareOfSource}% 0 0)`);
  cut();
  const range = el('input', {
    type: 'range',
    min: 0,
    max: 100,
    'aria-label': 'Share of the source that is shown',
    oninput: () => {
      shareOfSource = Number(range.value);
      cut();
    },
  });
  range.value = shareOfSource;
  return [
    el(
      'div',
      {class: 'big'},
      el('img', {src: image.png, alt: `Image made from seed ${image.seed}`}),
      over,
    ),
    el(
      'div',
      {class: 'row'},
      range,
      ...sources.map((each, index) =>
        el(
          'button',
          {
            type: 'button',
            'aria-pressed': String(index === compared),
            'aria-label': `Compare with image ${index + 1}, ${each.name}`,
            onclick: () => {
              compared = index;
              render();
            },
          },
          String(index + 1),
        ),
      ),
    ),
  ];
}

function actions(image, sources) {
  const act = (label, event) =>
    el('button', {type: 'button', onclick: () => trigger(event, {id: image.id})}, label);
  const json = URL.createObjectURL(new Blob([image.recipe], {type: 'application/json'}));
  urls.push(json);
  const name = `composer-${image.seed}`;
  return el(
    'div',
    {class: 'row actions'},
    el('a', {class: 'button primary', href: image.png, download: `${name}.png`}, 'Download PNG'),
    el('a', {class: 'button', href: json, download: `${name}.json`}, 'Share recipe'),
    sources.length > 0 &&
      el(
        'button',
        {
          type: 'button',
          'aria-pressed': String(compared !== null),
          onclick: () => {
            compared = compared === null ? 0 : null;
            render();
          },
        },
        'Compare',
      ),
    act('Reuse seed', 'seed'),
    act('Use as image', 'reuse'),
    act('Back to its panel', 'restore'),
  );
}

let urls = [];

function render() {
  const [look, image] = [props.look || {}, current()];
  const sources = (props.value && props.value.sources) || [];
  if (!sources.length) compared = null;
  urls.forEach((url) => URL.revokeObjectURL(url));
  urls = [];
  const parts = [];
  if (look.text) {
    parts.push(
      el(
        'div',
        {class: 'big busy'},
        look.image
          ? el('img', {src: look.image, alt: 'Preview of the image that is being made'})
          : el('p', {}, look.text),
      ),
      progress(look),
      el('p', {class: 'caption'}, look.text),
    );
  } else if (image && compared !== null) {
    parts.push(...comparison(image, sources));
  } else if (image) {
    parts.push(
      el(
        'div',
        {class: 'big'},
        el('img', {src: image.png, alt: `Image made from seed ${image.seed}`}),
      ),
    );
  } else {
    parts.push(
      el('div', {class: 'big empty'}, el('p', {}, 'What you compose appears here.')),
    );
  }
  if (image && !look.text) {
    parts.push(
      el('p', {class: 'caption'}, `Seed ${image.seed}, ${image.seconds.toFixed(1)} s`),
      actions(image, sources),
    );
  }
  if (images().length > 1) {
    parts.push(
      el(
        'div',
        {class: 'gallery', role: 'group', 'aria-label': 'Images made'},
        ...[...images()].reverse().map((each) =>
          el(
            'button',
            {
              type: 'button',
              'aria-pressed': String(image && each.id === image.id),
              'aria-label': `Show the image from seed ${each.seed}, number ${each.id}`,
              onclick: () => {
                chosen = each.id;
                render();
              },
            },
            el('img', {src: each.png, alt: ''}),
          ),
        ),
      ),
    );
  }
  const label = root.contains(document.activeElement)
    ? document.activeElement.getAttribute('aria-label') || document.activeElement.textContent
    : null;
  root.replaceChildren(...parts);
  if (label) {
    const same = (each) => (each.getAttribute('aria-label') || each.textContent) === label;
    [...root.querySelectorAll('button, a, input')].find(same)?.focus();
  }
}

watch('value', () => {
  chosen = null;
  render();
});
let busy = false;
watch('look', () => {
  render();
  // On a phone what is being made may be far below what asked for it.
  const begins = !busy && Boolean((props.look || {}).text);
  busy = Boolean((props.look || {}).text);
  if (begins) root.scrollIntoView({block: 'nearest'});
});
render();
