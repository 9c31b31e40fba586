'use strict';

// --- the data, and small helpers ----------------------------------------------------------------
// "row" is always an index into the columns of `images`. Text only ever becomes text, by textContent.

const dataElement = document.getElementById('data');
const data = JSON.parse(dataElement.textContent);
dataElement.remove(); // the text alone takes many megabytes
const { images, thumbnails } = data;
const numImages = images.name.length;

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

function element(tag, className = '', text = '') {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

const number = (count) => count.toLocaleString('en-US');
const images_ = (count) => `${number(count)} ${count === 1 ? 'image' : 'images'}`;

// as `percent` of words.py: only 0 is written as 0 %, and only 1 as 100 %
function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return '<0.1\u00a0%';
  if (value > 0 && value < 1) return `${(Math.floor(10 * value + 0.5) / 10).toFixed(1)}\u00a0%`;
  if (value > 99 && value < 100) return `${(Math.floor(10 * value) / 10).toFixed(1)}\u00a0%`;
  return `${Math.floor(value + 0.5)}\u00a0%`;
}

// Hues that differ by the golden angle are far apart for any number of clusters; these lightnesses can be
// told from white and from black.
function color(cluster) {
  const hue = (cluster * 137.508 + 255) % 360;
  return `oklch(${[0.6, 0.64, 0.53][cluster % 3]} ${[0.15, 0.12, 0.17][cluster % 3]} ${hue.toFixed(1)})`;
}

// After the model's clusters come NONE, of images that belong nowhere, and those that the user makes.
const NONE = data.clusters.length;
const colors = [...data.clusters.map((_, cluster) => color(cluster)), 'oklch(0.6 0 0)'];
const byModel = images.cluster;
const start = byModel.map((cluster, row) => (images.corrected?.[row] === 'none' ? NONE : cluster));
images.cluster = start; // and with the user's corrections

const say = (text) => { $('#said').textContent = text; };

// Calls the function once per frame, however often it is asked to.
function eachFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  };
}

function download(file, lines) {
  const url = URL.createObjectURL(new Blob([lines.join('\n') + '\n'], { type: 'text/csv;charset=utf-8' }));
  const link = element('a');
  link.href = url;
  link.download = file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// What the page keeps in the browser lasts as long as the page where there is no storage.
function keep(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch { /* no storage */ }
}

function kept(key) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? {};
  } catch { // no storage, or not ours
    return {};
  }
}

const cell = (text) => (/[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

// --- thumbnails ---------------------------------------------------------------------------------

const sheets = thumbnails.sheets.map(() => ({ url: null, picture: null, ready: false }));
const pixels = thumbnails.side <= 16; // images so small that their pixels are to be seen
const inset = pixels ? 0 : 0.5; // pixels at the edges that are not shown, as the next thumbnail shines through
for (const [name, value] of Object.entries({ columns: thumbnails.columns, side: thumbnails.side, inset })) {
  document.documentElement.style.setProperty(`--${name}`, value);
}
document.documentElement.classList.toggle('pixels', pixels);

function bytes(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const made = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) made[i] = text.charCodeAt(i);
  return made;
}

function sheetUrl(index) {
  const sheet = sheets[index];
  if (!sheet.url) {
    sheet.url = URL.createObjectURL(new Blob([bytes(thumbnails.sheets[index])], { type: 'image/jpeg' }));
    thumbnails.sheets[index] = null;
  }
  return sheet.url;
}

let decoding = 0; // sheets

// The sheet as an image to draw from; null until it is decoded. After the last one all is drawn again.
function sheetPicture(index) {
  const sheet = sheets[index];
  if (!sheet.picture) {
    sheet.picture = new Image();
    sheet.picture.src = sheetUrl(index);
    decoding += 1;
    sheet.picture.decode().then(() => {
      sheet.ready = true;
      decoding -= 1;
      if (decoding > 0) return;
      drawMap();
      if (dialog.open) drawLarge();
    });
  }
  return sheet.ready ? sheet.picture : null;
}

function place(row) {
  const within = row % thumbnails.per_sheet;
  return {
    sheet: Math.floor(row / thumbnails.per_sheet),
    column: within % thumbnails.columns,
    line: Math.floor(within / thumbnails.columns),
  };
}

// Gives an element the image as its background; its size is the style sheet's --size.
function show(target, row) {
  const { sheet, column, line } = place(row);
  target.style.backgroundImage = `url("${sheetUrl(sheet)}")`;
  target.style.setProperty('--column', column);
  target.style.setProperty('--line', line);
}

// Draws the image on a canvas, as soon as its sheet is decoded.
function drawImage(context, row, x, y, size) {
  const { sheet, column, line } = place(row);
  const picture = sheetPicture(sheet);
  if (!picture) return;
  const { side } = thumbnails;
  const part = side - 2 * inset;
  context.imageSmoothingEnabled = !pixels;
  context.drawImage(picture, column * side + inset, line * side + inset, part, part, x, y, size, size);
}

const isCorrected = (row) => images.cluster[row] !== byModel[row] || Boolean(images.corrected?.[row]);

function describe(button) {
  const row = Number(button.dataset.row);
  const how = isCorrected(row) ? 'corrected' : percent(images.confidence[row]);
  const text = [images.name[row], nameOf(images.cluster[row]), how]
    .concat(selected.has(row) ? 'selected' : []).join(', ');
  button.setAttribute('aria-label', text);
  button.title = text;
  button.style.setProperty('--color', colors[images.cluster[row]]);
  button.classList.toggle('selected', selected.has(row));
  button.classList.toggle('corrected', isCorrected(row));
}

function thumb(row) {
  const button = element('button', 'thumb');
  button.type = 'button';
  button.dataset.row = row;
  show(button, row);
  describe(button);
  return button;
}

const rowsOf = (container) => (container.dataset.rows ? container.dataset.rows.split(',').map(Number) : []);

const FEW = 3000; // thumbnails that are all made at once, so that no place moves while one goes there

function fill(target) {
  if (target.matches('.still')) show(target, Number(target.dataset.row));
  else target.replaceChildren(...rowsOf(target).map(thumb));
  target.classList.remove('many'); // until now it had the height of many
}

// Makes the thumbnails of the lists; of many, each when its place comes near the window.
function fillLists() {
  const targets = $$('.thumbs[data-rows], .still[data-row]');
  if (targets.reduce((count, target) => count + rowsOf(target).length, 0) <= FEW) {
    targets.forEach(fill);
    return;
  }
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      fill(target);
    }
  }, { rootMargin: '600px' });
  for (const target of targets) near.observe(target);
}

// --- names of clusters --------------------------------------------------------------------------

// other names in names.csv count more than what was typed before them
const namesKey = ['scan-report-names', data.clustering || data.id, ...(data.names ?? [])].join(':');
const names = data.clusters.map(({ name }, cluster) => {
  const given = data.names ? data.names[cluster] : name;
  return given === String(cluster) ? '' : clean(given ?? '');
});
const typed = {}; // of them, those that were typed: cluster -> name

// One line without control characters, as names.csv needs it.
function clean(name) {
  return name.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, ' ').trim();
}

function nameOf(cluster) {
  if (cluster === NONE) return 'Belongs nowhere';
  if (cluster > NONE) return `${names[cluster] || `New cluster ${cluster - NONE}`} (new)`;
  return names[cluster] ? `${names[cluster]} (${cluster})` : `Cluster ${cluster}`;
}

function rename(cluster, name) {
  names[cluster] = clean(name);
  if (cluster < NONE) typed[cluster] = names[cluster];
  else corrections.find(({ to }) => to === cluster).name = names[cluster]; // which made it
}

function readNames() {
  for (const [cluster, name] of Object.entries(kept(namesKey))) {
    if (cluster in data.clusters && typeof name === 'string') rename(cluster, name);
  }
}

function showNames(places) {
  for (const target of places) target.textContent = nameOf(Number(target.dataset.name));
  const given = names.slice(0, NONE).filter(Boolean);
  const classes = new Set(given).size;
  const merged = classes < given.length ? `, ${number(classes)} different names` : '';
  const text = `${number(given.length)} of ${number(NONE)} named${merged}`;
  for (const target of $$('.named')) target.textContent = text;
}

function startNames() {
  readNames();
  for (const input of $$('input[data-cluster]')) input.value = names[input.dataset.cluster];
  $('#cards').addEventListener('input', ({ target }) => {
    const cluster = Number(target.dataset.cluster);
    rename(cluster, target.value);
    keep(namesKey, typed);
    showNames($$(`[data-name="${cluster}"]`));
    if (cluster > NONE) showState();
  });
  $('#cards').addEventListener('change', () => $$('.thumb').forEach(describe));
  showNames($$('[data-name]'));
  for (const button of $$('.save-names')) {
    button.addEventListener('click', () => {
      const [title, of] = data.clustering ? [',clustering', `,${data.clustering}`] : ['', ''];
      const lines = data.clusters.map((_, cluster) => `${cluster},${cell(names[cluster] || String(cluster))}${of}`);
      download('names.csv', [`cluster,name${title}`, ...lines]);
      say('names.csv saved');
      for (const target of $$('.named')) target.textContent += '; saved';
    });
  }
}

// --- selection ----------------------------------------------------------------------------------

const selected = new Set();

function showSelection() {
  $('#basket').hidden = selected.size === 0;
  $('#selected-count').textContent = `${number(selected.size)} selected`;
  $$('.thumb').forEach(describe);
  drawMap();
}

function toggle(row) {
  const chosen = !selected.delete(row);
  if (chosen) selected.add(row);
  showSelection();
  say(`${images.name[row]} ${chosen ? 'selected' : 'no longer selected'}, ${number(selected.size)} in all`);
}

function clearSelection() {
  selected.clear();
  showSelection();
  if ($('#only-selected').checked) filter();
  $('#main').focus({ preventScroll: true });
}

function startSelection() {
  $('#select-shown').addEventListener('click', () => {
    shown.forEach((row) => selected.add(row));
    showSelection();
    say(`${number(selected.size)} selected`);
  });
  $('#clear-selection').addEventListener('click', () => {
    clearSelection();
    say('nothing selected');
  });
  $('#save-selection').addEventListener('click', () => {
    const rows = [...selected].sort((a, b) => a - b);
    const { name, cluster, confidence } = images;
    const lines = rows.map((row) => `${cell(name[row])},${reference(cluster[row])},${confidence[row]}`);
    download('selection.csv', ['file,cluster,confidence', ...lines]);
    say('selection.csv saved');
  });
}

// --- all images: filter and gallery -------------------------------------------------------------

const BATCH = 200; // thumbnails that the gallery gets at a time
const folded = images.name.map((name) => name.normalize().toLowerCase());
let shown = []; // rows that pass the filter, in the gallery's order
const passes = new Uint8Array(numImages).fill(1);
let filled = 0; // of them, how many have a thumbnail

function percentOf(selector, otherwise) {
  const value = $(selector).valueAsNumber;
  return Number.isNaN(value) ? otherwise : value / 100;
}

function filter() {
  const cluster = $('#in-cluster').value;
  const text = $('#search').value.normalize().toLowerCase();
  const [from, to] = [percentOf('#from', 0), percentOf('#to', 1)];
  const only = $('#only-selected').checked;
  shown = [];
  for (let row = 0; row < numImages; row += 1) {
    const confidence = images.confidence[row];
    passes[row] = (cluster === '' || images.cluster[row] === Number(cluster))
      && confidence >= from && (confidence < to || to >= 1)
      && (!only || selected.has(row)) && folded[row].includes(text);
    if (passes[row]) shown.push(row);
  }
  const order = $('#gallery-order').value;
  if (order !== 'file') {
    const sign = order === 'least' ? 1 : -1;
    shown.sort((a, b) => sign * (images.confidence[a] - images.confidence[b]) || a - b);
  }
  for (const chip of $$('.chip')) chip.setAttribute('aria-pressed', chip.dataset.cluster === cluster);
  const none = shown.length ? '' : '; nothing matches the filter';
  $('#shown-count').textContent = `${number(shown.length)} of ${images_(numImages)}${none}`;
  $('#gallery-thumbs').replaceChildren();
  filled = 0;
  fillGallery();
  $('#gallery').scrollTop = 0;
  map.packed = null;
  drawMap();
}

function fillGallery() {
  const rows = shown.slice(filled, filled + BATCH);
  filled += rows.length;
  const batch = document.createDocumentFragment();
  batch.append(...rows.map(thumb));
  $('#gallery-thumbs').append(batch);
  $('#more').hidden = filled >= shown.length;
}

function startGallery() {
  const form = $('#filters');
  const soon = eachFrame(filter);
  form.addEventListener('input', soon);
  form.addEventListener('reset', () => setTimeout(filter));
  form.addEventListener('submit', (event) => event.preventDefault());
  document.addEventListener('click', ({ target }) => {
    const chip = target.closest('.chip');
    const link = target.closest('[data-show-cluster], [data-show-below]');
    if (chip) {
      const pressed = chip.getAttribute('aria-pressed') === 'true';
      $('#in-cluster').value = pressed ? '' : chip.dataset.cluster;
      filter();
    } else if (link) {
      form.reset(); // which filters, but later
      $('#in-cluster').value = link.dataset.showCluster ?? '';
      if (link.dataset.showBelow) $('#to').value = link.dataset.showBelow;
      $('#gallery-order').value = link.dataset.showBelow ? 'least' : 'most';
    }
  });
  const more = $('#more');
  more.addEventListener('click', fillGallery);
  const atEnd = new IntersectionObserver(([entry]) => {
    if (!entry.isIntersecting) return;
    fillGallery();
    atEnd.unobserve(more); // observed anew, it tells whether the button is still in view
    atEnd.observe(more);
  }, { root: $('#gallery'), rootMargin: '400px' });
  filter();
  atEnd.observe(more);
}

// --- order of the clusters ----------------------------------------------------------------------

function startOrder() {
  $('#order').addEventListener('change', () => {
    const key = $('#order').value;
    const sign = key === 'cluster' ? 1 : -1;
    for (const list of [$('#size-list'), $('#cards')]) {
      const items = [...list.children];
      items.sort((a, b) => sign * (a.dataset[key] - b.dataset[key]) || a.dataset.cluster - b.dataset.cluster);
      list.append(...items);
    }
  });
}

// --- one image in a dialog ----------------------------------------------------------------------

const dialog = $('#detail');
const detail = { rows: [], at: 0, earlier: [] }; // the list it was opened from, and those before that one

function openImage(rows, row) {
  detail.earlier = dialog.open ? [...detail.earlier, { rows: detail.rows, at: detail.at }] : [];
  detail.rows = rows;
  detail.at = rows.indexOf(row);
  showDetail();
  if (!dialog.open) dialog.showModal();
  $(detail.earlier.length ? '#back' : '#next').focus();
  dialog.scrollTop = 0;
}

function step(by) {
  const at = detail.at + by;
  if (at < 0 || at >= detail.rows.length) return;
  detail.at = at;
  showDetail();
}

function fact(term, ...content) {
  const line = element('div');
  const description = element('dd');
  description.append(...content);
  line.append(element('dt', '', term), description);
  return line;
}

function clusterWith(cluster, confidence) {
  const parts = [element('span', 'swatch'), element('bdi', '', nameOf(cluster))];
  if (confidence !== undefined) parts.push(`, ${percent(confidence)}`);
  parts[0].style.setProperty('--color', colors[cluster]);
  return parts;
}

function goTo(row) {
  const button = element('button', 'plain link', images.name[row]);
  button.type = 'button';
  button.addEventListener('click', () => openImage([row], row));
  return button;
}

function fileOf(name) {
  return data.folder + name.split('/').map(encodeURIComponent).join('/');
}

function showDetail() {
  const { rows, at, earlier } = detail;
  const row = rows[at];
  $('#detail-name').textContent = images.name[row];
  $('#position').textContent = `${number(at + 1)} of ${number(rows.length)}`;
  $('#previous').setAttribute('aria-disabled', at === 0);
  $('#next').setAttribute('aria-disabled', at === rows.length - 1);
  $('#back').hidden = earlier.length === 0;
  drawLarge();
  $('#large').style.setProperty('--color', colors[images.cluster[row]]);
  const facts = [
    fact(isCorrected(row) ? 'By the model' : 'Cluster', ...clusterWith(byModel[row], images.confidence[row])),
    fact('Runner-up', ...clusterWith(images.runner_up[row], images.runner_up_confidence[row])),
  ];
  if (isCorrected(row)) facts.unshift(fact('Corrected', ...clusterWith(images.cluster[row])));
  if (data.classes && images.label[row] >= 0) {
    facts.push(fact('Class', element('bdi', '', data.classes[images.label[row]])));
  }
  const [copyOf, nearOf] = [images.copy_of[row], images.near_duplicate_of[row]];
  if (copyOf >= 0) facts.push(fact('Copy of', goTo(copyOf)));
  if (nearOf >= 0) facts.push(fact('Near duplicate of', goTo(nearOf)));
  $('#facts').replaceChildren(...facts);
  const link = $('#open');
  link.hidden = data.folder === null || images.name[row].includes('\\'); // escapes are not the file's name
  if (!link.hidden) link.href = fileOf(images.name[row]);
  const nearest = images.neighbors[row];
  $('#nearest').hidden = nearest.length === 0;
  $('#neighbors').dataset.rows = nearest.join(',');
  $('#neighbors').replaceChildren(...nearest.map(thumb));
  showSelected();
}

function drawLarge() {
  const target = $('#large');
  target.width = 680; // enough for a fine screen; clears it, too
  target.height = 680;
  drawImage(target.getContext('2d'), detail.rows[detail.at], 0, 0, 680);
}

function showSelected() {
  const chosen = selected.has(detail.rows[detail.at]);
  $('#select').setAttribute('aria-pressed', chosen);
  $('#select').textContent = chosen ? 'Selected' : 'Select';
}

function toggleDetail() {
  toggle(detail.rows[detail.at]);
  showSelected();
}

function startDialog() {
  $('#previous').addEventListener('click', () => step(-1));
  $('#next').addEventListener('click', () => step(1));
  $('#close').addEventListener('click', () => dialog.close());
  $('#select').addEventListener('click', toggleDetail);
  $('#back').addEventListener('click', () => {
    Object.assign(detail, detail.earlier.pop());
    showDetail();
    if ($('#back').hidden) $('#next').focus();
  });
  dialog.addEventListener('click', (event) => {
    if (event.target === dialog) dialog.close(); // beside it
  });
  document.addEventListener('click', (event) => {
    const button = event.target.closest('.thumb');
    if (!button) return;
    const row = Number(button.dataset.row);
    if (event.ctrlKey || event.metaKey) toggle(row);
    else openImage(listOf(button), row);
  });
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const focused = document.activeElement;
    if (focused.matches('select')) return; // whose keys these are
    if (dialog.open && event.key === 'ArrowLeft') step(-1);
    else if (dialog.open && event.key === 'ArrowRight') step(1);
    else if (dialog.open && event.key === 's') toggleDetail();
    else if (event.key === 's' && focused.matches('.thumb')) toggle(Number(focused.dataset.row));
  });
}

// The images among which a thumbnail stands: those of the gallery, or of its list.
function listOf(button) {
  if (button.closest('#gallery')) return shown;
  const list = button.closest('[data-list]');
  const rows = list ? $$('.thumbs', list).flatMap(rowsOf) : rowsOf(button.closest('.thumbs'));
  return [...new Set(rows)];
}

// --- the map ------------------------------------------------------------------------------------
// Places are [0, 1]; on the screen they are `scale` pixels wide, around the place (x, y) in the middle.

const MARGIN = 28; // pixels around the whole map
const FRAME = 2; // of a thumbnail
const MOST_ZOOM = 60;
const canvas = $('#map canvas');
const tip = $('#tip');
const map = {
  x: 0.5, y: 0.5, zoom: 1, width: 0, height: 0, // the view
  thumbs: true, // whether thumbnails are drawn
  packed: null, size: 0, // rows that have one; their side
  hovered: -1,
  pointers: new Map(), moved: 0, // fingers, and how far they have moved since the first came down
};

const scale = () => (Math.min(map.width, map.height) - 2 * MARGIN) * map.zoom;
const toScreen = (row) => [
  map.width / 2 + (images.x[row] - map.x) * scale(),
  map.height / 2 + (images.y[row] - map.y) * scale(),
];

// Prototypes come first; then rows in an order that has nothing to do with files or clusters, but is the
// same every time, so that the same images stay as one moves.
const inOrder = (() => {
  const prototypes = data.clusters.map(({ prototype }) => prototype).filter((row) => row !== null);
  const first = new Set(prototypes);
  const mixed = (row) => Math.imul(row + 1, 2654435761) >>> 0;
  const rest = images.name.map((_, row) => row).filter((row) => !first.has(row));
  return [...first, ...rest.sort((a, b) => mixed(a) - mixed(b))];
})();

// The rows whose thumbnails do not overlap at this scale, earlier ones first. All of the map is packed, seen
// or not, so that moving changes nothing. A cell of the grid, of a thumbnail's size, holds at most one.
function pack(size) {
  const step = size / scale();
  const cells = Math.ceil(1 / step) + 3;
  const grid = new Int32Array(cells * cells).fill(-1);
  const packed = [];
  for (const row of inOrder) {
    if (!passes[row]) continue;
    const [x, y] = [images.x[row], images.y[row]];
    const middle = (Math.floor(y / step) + 1) * cells + Math.floor(x / step) + 1;
    let free = true;
    for (let line = middle - cells; free && line <= middle + cells; line += cells) {
      for (let at = line - 1; free && at <= line + 1; at += 1) {
        const other = grid[at];
        free = other < 0 || Math.abs(images.x[other] - x) >= step || Math.abs(images.y[other] - y) >= step;
      }
    }
    if (!free) continue;
    grid[middle] = row;
    packed.push(row);
  }
  return packed;
}

const drawMap = eachFrame(() => {
  const context = canvas.getContext('2d');
  const ratio = window.devicePixelRatio;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, map.width, map.height);
  if (map.width < 2 * MARGIN || map.height < 2 * MARGIN) return;
  const style = getComputedStyle(canvas);
  drawDots(context, style.color);
  if (map.thumbs) drawThumbs(context, style.color);
  if (map.hovered >= 0) {
    const [x, y] = toScreen(map.hovered);
    const side = map.thumbs && map.packed.includes(map.hovered) ? map.size + 2 : 14;
    context.strokeStyle = style.color;
    context.lineWidth = 2;
    context.strokeRect(x - side / 2, y - side / 2, side, side);
  }
});

const onScreen = (x, y, by) => x > -by && y > -by && x < map.width + by && y < map.height + by;

// A strip with a dot of each color, and a last one in the text color: copying is faster than drawing arcs.
function dotsOf(radius, ink, ratio) {
  const side = Math.ceil(2 * radius * ratio) + 2;
  const strip = element('canvas');
  [strip.width, strip.height] = [side * (colors.length + 1), side];
  const context = strip.getContext('2d');
  [...colors, ink].forEach((fill, index) => {
    context.fillStyle = fill;
    context.beginPath();
    context.arc(side * (index + 0.5), side / 2, radius * ratio, 0, 2 * Math.PI);
    context.fill();
  });
  return { strip, side };
}

function drawDots(context, ink) {
  const ratio = window.devicePixelRatio;
  const radius = Math.min(6, (numImages > 3000 ? 1.6 : 2.4) + 0.7 * Math.log2(map.zoom));
  const { strip, side } = dotsOf(radius, ink, ratio);
  const size = side / ratio;
  for (const pass of [0, 1]) { // those that are filtered out lie below
    context.globalAlpha = pass ? 0.85 : 0.1;
    for (let row = 0; row < numImages; row += 1) {
      if (passes[row] !== pass) continue;
      const [x, y] = toScreen(row);
      if (!onScreen(x, y, size)) continue;
      const dot = pass ? images.cluster[row] : colors.length;
      context.drawImage(strip, dot * side, 0, side, side, x - size / 2, y - size / 2, size, size);
    }
  }
  context.globalAlpha = 1;
  context.strokeStyle = ink;
  context.lineWidth = 1.5;
  for (const row of selected) {
    const [x, y] = toScreen(row);
    context.beginPath();
    context.arc(x, y, radius + 1.5, 0, 2 * Math.PI);
    context.stroke();
  }
}

function drawThumbs(context, ink) {
  if (!map.packed) {
    map.size = Math.round(Math.min(88, 30 + 13 * Math.log2(map.zoom)));
    map.packed = pack(map.size + 2);
  }
  for (const row of map.packed) {
    const [x, y] = toScreen(row).map((middle) => middle - map.size / 2);
    if (!onScreen(x, y, map.size)) continue;
    context.fillStyle = selected.has(row) ? ink : colors[images.cluster[row]];
    context.fillRect(x, y, map.size, map.size);
    drawImage(context, row, x + FRAME, y + FRAME, map.size - 2 * FRAME);
  }
}

// The row under a point of the canvas: of the nearest thumbnail that covers it, else of the nearest dot; or -1.
function hit(x, y) {
  let [found, least] = [-1, Infinity];
  const nearest = (rows, reach) => {
    for (const row of rows) {
      const [dx, dy] = toScreen(row).map((middle, axis) => Math.abs(middle - (axis ? y : x)));
      if (Math.max(dx, dy) <= reach && dx + dy < least) [found, least] = [row, dx + dy];
    }
  };
  if (map.thumbs && map.packed) nearest(map.packed, map.size / 2);
  if (found < 0) nearest(shown, 9);
  return found;
}

function hover(row) {
  if (row === map.hovered) return;
  map.hovered = row;
  canvas.classList.toggle('on-image', row >= 0);
  tip.hidden = row < 0;
  drawMap();
  if (row < 0) return;
  show($('.still', tip), row);
  $('.file', tip).textContent = images.name[row];
  const how = isCorrected(row) ? 'corrected' : percent(images.confidence[row]);
  $('.facts', tip).textContent = `${nameOf(images.cluster[row])}, ${how}`;
  const [x, y] = toScreen(row);
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  const beside = map.size / 2 + 10;
  const top = y < map.height / 2 ? y + beside : y - beside - height;
  tip.style.left = `${Math.max(4, Math.min(map.width - width - 4, x - width / 2))}px`;
  tip.style.top = `${Math.max(4, Math.min(map.height - height - 4, top))}px`;
}

// Moves by pixels.
function pan(dx, dy) {
  map.x = Math.min(1, Math.max(0, map.x - dx / scale()));
  map.y = Math.min(1, Math.max(0, map.y - dy / scale()));
  hover(-1);
  drawMap();
}

// Zooms around a point of the canvas, which stays where it is.
function zoom(factor, x = map.width / 2, y = map.height / 2) {
  const before = scale();
  map.zoom = Math.min(MOST_ZOOM, Math.max(1, map.zoom * factor));
  const by = 1 / before - 1 / scale();
  map.x += (x - map.width / 2) * by;
  map.y += (y - map.height / 2) * by;
  if (map.zoom === 1) [map.x, map.y] = [0.5, 0.5];
  map.packed = null;
  pan(0, 0);
}

const MAP_KEYS = {
  ArrowLeft: () => pan(60, 0),
  ArrowRight: () => pan(-60, 0),
  ArrowUp: () => pan(0, 60),
  ArrowDown: () => pan(0, -60),
  '+': () => zoom(1.5),
  '=': () => zoom(1.5),
  '-': () => zoom(1 / 1.5),
  0: () => zoom(0),
};

function mapKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === 'Enter' && map.hovered >= 0) {
    event.preventDefault(); // else it would also press the button that gets the focus
    openImage(shown, map.hovered);
  }
  if (!MAP_KEYS[event.key]) return;
  event.preventDefault();
  MAP_KEYS[event.key]();
  if (!map.packed && map.thumbs) map.packed = pack(map.size + 2);
  hover(nearestToMiddle());
  if (map.hovered >= 0) say(`${$('.file', tip).textContent}, ${$('.facts', tip).textContent}`);
}

function nearestToMiddle() {
  let [found, least] = [-1, Infinity];
  for (const row of shown) {
    const distance = Math.hypot(images.x[row] - map.x, images.y[row] - map.y);
    if (distance < least) [found, least] = [row, distance];
  }
  return found;
}

const at = (event) => [event.offsetX, event.offsetY];

function pointerDown(event) {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  if (map.pointers.size === 0) map.moved = 0;
  map.pointers.set(event.pointerId, at(event));
}

function pointerMove(event) {
  const before = map.pointers.get(event.pointerId);
  const [x, y] = at(event);
  if (!before) {
    hover(hit(x, y));
    return;
  }
  const [dx, dy] = [x - before[0], y - before[1]];
  map.moved += Math.abs(dx) + Math.abs(dy);
  map.pointers.set(event.pointerId, [x, y]);
  const others = [...map.pointers].filter(([id]) => id !== event.pointerId);
  if (others.length === 0) {
    if (map.moved > 4) pan(dx, dy);
    return;
  }
  const [ox, oy] = others[0][1]; // pinching: the other finger stays where it is
  const apart = Math.hypot(before[0] - ox, before[1] - oy);
  if (apart > 0) zoom(Math.hypot(x - ox, y - oy) / apart, ox, oy);
}

function pointerUp(event) {
  if (!map.pointers.delete(event.pointerId) || map.moved > 4 || event.type === 'pointercancel') return;
  const row = hit(...at(event));
  if (row >= 0) openImage(shown, row);
}

function wheel(event) {
  const pixels = event.deltaY * [1, 16, 400][event.deltaMode];
  if (map.zoom === 1 && pixels > 0) return; // out of the whole map: the page scrolls
  event.preventDefault();
  zoom(Math.exp(-pixels * (event.ctrlKey ? 0.01 : 0.002)), ...at(event));
}

function resize() {
  const { width, height } = canvas.getBoundingClientRect();
  Object.assign(map, { width, height, packed: null });
  canvas.width = Math.round(width * window.devicePixelRatio);
  canvas.height = Math.round(height * window.devicePixelRatio);
  drawMap();
}

function startMap() {
  new ResizeObserver(resize).observe(canvas);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawMap);
  canvas.addEventListener('pointerdown', pointerDown);
  canvas.addEventListener('pointermove', pointerMove);
  canvas.addEventListener('pointerup', pointerUp);
  canvas.addEventListener('pointercancel', pointerUp);
  canvas.addEventListener('pointerleave', () => hover(-1));
  canvas.addEventListener('blur', () => hover(-1));
  canvas.addEventListener('wheel', wheel, { passive: false });
  canvas.addEventListener('keydown', mapKey);
  const factors = { in: 1.6, out: 1 / 1.6, reset: 0 };
  for (const button of $$('[data-zoom]')) {
    button.addEventListener('click', () => zoom(factors[button.dataset.zoom]));
  }
  $('#map-thumbs').addEventListener('click', (event) => {
    map.thumbs = !map.thumbs;
    event.currentTarget.setAttribute('aria-pressed', map.thumbs);
    drawMap();
  });
}

// --- corrections --------------------------------------------------------------------------------
// A list of what was done, which is done again from the start after each change. A unit is an image or, if the
// page shows a sample, the other images of a cluster's part.

const correctionsKey = `scan-report-corrections:${data.clustering}`;
const corrections = []; // { action, what, to }: numbers of clusters; files of a move; name of a cluster it makes
let savedLines = '';
let corrected = new Set(); // clusters whose images are not the model's
const rowOf = new Map(images.name.map((name, row) => [name, row]));
const units = byModel.map((model, row) => ({ model, start: start[row], part: images.part?.[row] ?? 0, count: 1 }));
const unseen = data.clusters.flatMap(({ parts }, model) => parts.map((count, part) => ({ model, start: model, part, count })));
for (const { model, part } of units) unseen[2 * model + part].count -= 1;
units.push(...unseen);

// A cluster in a table: its number, or a name that means no other cluster, nor one of an earlier page.
function reference(cluster) {
  if (cluster <= NONE) return cluster < NONE ? String(cluster) : 'none';
  const name = names[cluster] || `New cluster ${cluster - NONE} of ${data.clustering.slice(0, 4)}`;
  return cell(/^(\d+|none)$/i.test(name) ? `Cluster ${name}` : name);
}

function correctionLines() {
  const rows = corrections.flatMap(({ action, what, to, files }) => (
    files ? files.map((file) => `move,${cell(file)},${reference(to)}`) : `${action},${reference(what)},${reference(to)}`
  ));
  return ['action,what,to,clustering', ...rows.map((row) => `${row},${data.clustering}`)];
}

const isUnsaved = () => corrections.length > 0 && correctionLines().join('\n') !== savedLines;
const newest = () => corrections.reduce((most, { to }) => Math.max(most, to), NONE);

function replay() {
  for (const unit of units) unit.now = unit.start;
  for (const { action, what, to, files, name } of corrections) {
    if (name !== undefined) names[to] = name;
    if (files) for (const file of files) units[rowOf.get(file)].now = to;
    else {
      for (const unit of units) {
        if (unit.now === what && (action === 'merge' || (unit.model === what && unit.part))) unit.now = to;
      }
    }
  }
  images.cluster = units.slice(0, numImages).map(({ now }) => now);
}

function paint(root) {
  for (const target of $$('[data-color], [data-cluster]', root)) {
    target.style.setProperty('--color', colors[Number(target.dataset.color ?? target.dataset.cluster)]);
  }
}

function makeCluster(cluster) {
  colors[cluster] ??= color(cluster);
  const made = element('template');
  made.innerHTML = $('#new-cluster').innerHTML.replaceAll('NEW', cluster); // the page's own text
  paint(made.content);
  if (cluster === NONE) $$('.name, .correct', made.content).forEach((target) => target.remove());
  const places = [$('#size-list'), $('#legend'), $('#cards'), $('#in-cluster')];
  [...made.content.children].forEach((target, index) => places[index].append(target));
}

function optionOf(cluster) {
  const option = new Option(nameOf(cluster), cluster);
  option.dataset.name = cluster;
  return option;
}

function showCorrections() {
  replay();
  for (let cluster = NONE; cluster <= newest(); cluster += 1) if (!$(`#cluster-${cluster}`)) makeCluster(cluster);
  const sizes = colors.map(() => 0);
  const before = corrected;
  corrected = new Set();
  for (const { model, now, count } of units) {
    sizes[now] += count;
    if (count && model !== now) corrected.add(model).add(now);
  }
  for (const cluster of new Set([...before, ...corrected])) showCluster(cluster, sizes[cluster]);
  const merged = new Set(corrections.filter(({ action }) => action === 'merge').map(({ what }) => what));
  const isGone = (cluster) => merged.has(cluster) || (cluster >= NONE && !sizes[cluster]);
  for (const target of $$('.card, .chip, #size-list li, .tree [data-cluster], #in-cluster [data-cluster], .correct')) {
    const { cluster, into = cluster } = target.dataset;
    target.hidden = isGone(Number(cluster)) || isGone(Number(into));
    target.disabled = target.hidden; // not every browser hides an option
    if (target.hidden && target.selected) $('#in-cluster').value = '';
  }
  const most = Math.max(1, ...sizes);
  for (const item of $$('#size-list li')) {
    item.dataset.size = sizes[item.dataset.cluster];
    $('rect', item).setAttribute('width', 100 * (item.dataset.size / most));
    $('.figure', item).textContent = number(sizes[item.dataset.cluster]);
  }
  const there = [...sizes.keys()].filter((cluster) => cluster !== NONE && !isGone(cluster));
  $('#cluster-count').textContent = number(there.length);
  $('#empty-count').hidden = corrections.length > 0;
  for (const select of $$('.targets')) {
    const { value } = select;
    select.replaceChildren(...there.map(optionOf), new Option('a new cluster', newest() + 1), optionOf(NONE));
    if ($$('option', select).some((option) => option.value === value)) select.value = value; // the target of before
  }
  const { scrollTop } = $('#gallery');
  const reached = filled;
  filter();
  while (filled < Math.min(reached, shown.length)) fillGallery();
  $('#gallery').scrollTop = scrollTop;
  $$('.thumb').forEach(describe);
  showNames($$('[data-name]'));
  if (dialog.open) showDetail();
  showState();
}

// A cluster's card, and its image in the list of sizes.
function showCluster(cluster, size) {
  const card = $(`#cluster-${cluster}`);
  const changed = corrected.has(cluster);
  const rows = images.name.map((_, row) => row).filter((row) => images.cluster[row] === cluster);
  rows.sort((a, b) => images.confidence[b] - images.confidence[a]);
  const { prototype: itsOwn } = data.clusters[cluster] ?? {};
  const prototype = images.cluster[itsOwn] === cluster ? itsOwn : rows[0];
  const lists = [rows.length ? [prototype] : [], rows.slice(0, 12), rows.slice(12).slice(-6).reverse()];
  $$('.thumbs', card).forEach((target, index) => {
    target.dataset.rows = lists[index].join(',');
    fill(target);
  });
  card.dataset.size = size;
  card.classList.toggle('corrected', changed);
  $('.count', card).textContent = `${images_(size)}, ${percent(size / data.num_images)}${changed ? ', corrected' : ''}`;
  $$('.confidence', card).forEach((target) => { target.hidden = changed; }); // that of the model's cluster
  $('.its-images', card).hidden = size === 0;
  $('.empty', card).hidden = size > 0;
  const still = $(`#size-list [data-cluster="${cluster}"] .still`);
  still.classList.toggle('none', !rows.length);
  if (rows.length) show(still, prototype);
}

function showState() {
  const count = corrections.length;
  $('#corrections').hidden = count === 0;
  $('#correction-count').textContent = `${number(count)} ${count === 1 ? 'correction' : 'corrections'}`;
  $('#where-to').hidden = isUnsaved();
  keep(correctionsKey, { corrections, savedLines });
}

function correct(correction) {
  const { files, what, to } = correction;
  const subject = files ? images_(files.length) : nameOf(what);
  if (to > newest()) correction.name = ''; // until the user types one
  corrections.push(correction);
  showCorrections();
  say(`${subject}: ${{ move: 'moved to', merge: 'merged into', split: 'split, with' }[correction.action]} ${nameOf(to)}`);
}

function undo() {
  if (!corrections.pop()) return;
  showCorrections();
  say(`undone; ${$('#correction-count').textContent} left`);
}

const menu = $('#correct');

function openMenu({ cluster, into }) {
  const what = Number(cluster);
  menu.dataset.cluster = what;
  $('#correct-title').textContent = nameOf(what);
  const others = [...$('.targets').options].slice(0, -2).filter(({ value }) => value !== cluster);
  $('#merge-into').replaceChildren(...others.map(({ value }) => optionOf(Number(value))));
  if (into) $('#merge-into').value = into;
  const parts = [0, 0];
  for (const { model, now, part, count } of units) if (now === what) parts[model === what ? part : 0] += count;
  $('#parts').hidden = !parts[0] || !parts[1];
  $('#part-sizes').textContent = `by its two finer parts: ${parts.map(number).join(' and ')} images`;
  menu.showModal();
}

function startCorrections() {
  const earlier = kept(correctionsKey);
  try {
    for (const correction of earlier.corrections ?? []) {
      corrections.push({ ...correction, files: correction.files?.filter((file) => rowOf.has(file)) });
    }
    savedLines = earlier.savedLines;
    showCorrections();
  } catch { // not ours
    corrections.length = 0;
    showCorrections();
  }
  document.addEventListener('click', ({ target }) => {
    const button = target.closest('.correct');
    if (button) openMenu(button.dataset);
  });
  for (const place of $$('.move')) {
    $('button', place).addEventListener('click', () => {
      const one = dialog.contains(place);
      const rows = one ? [detail.rows[detail.at]] : [...selected].sort((a, b) => a - b);
      correct({ action: 'move', to: Number($('select', place).value), files: rows.map((row) => images.name[row]) });
      if (!one) clearSelection();
    });
  }
  $('#merge').addEventListener('click', () => {
    const to = Number($('#merge-into').value);
    menu.close();
    correct({ action: 'merge', what: Number(menu.dataset.cluster), to });
    $(`#cluster-${to} .correct`).focus();
  });
  $('#split').addEventListener('click', () => {
    menu.close();
    correct({ action: 'split', what: Number(menu.dataset.cluster), to: newest() + 1 });
  });
  $('#close-correct').addEventListener('click', () => menu.close());
  $('#undo').addEventListener('click', undo);
  $('#save-corrections').addEventListener('click', () => {
    const lines = correctionLines();
    download('corrections.csv', lines);
    savedLines = lines.join('\n');
    showState();
    say(`${$('#correction-count').textContent}${$('#where-to').textContent}`);
  });
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'z' || !(event.ctrlKey || event.metaKey) || event.shiftKey || event.altKey) return;
    if (document.activeElement.matches('input:not([type="checkbox"])')) return; // undoes what was typed
    event.preventDefault();
    undo();
  });
  window.addEventListener('beforeunload', (event) => { if (isUnsaved()) event.preventDefault(); });
}

// --- start --------------------------------------------------------------------------------------

paint(document);
startNames();
startSelection();
startGallery();
startOrder();
startDialog();
startMap();
fillLists();
if (data.clustering) startCorrections();
