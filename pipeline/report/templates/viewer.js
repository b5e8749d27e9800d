"use strict";
// One viewer per card. The slices of a crop are stacked vertically in one grey image; its grey
// levels encode Hounsfield units by the knots of GREYS, and a window is a table from these grey
// levels to displayed ones.
const settings = JSON.parse(document.getElementById("viewer-settings").textContent);

function unitsOf(grey) {
  const knots = settings.greys;
  let k = 1;
  while (k < knots.length - 1 && grey > knots[k][1]) k += 1;
  const [lowUnits, lowGrey] = knots[k - 1];
  const [highUnits, highGrey] = knots[k];
  return lowUnits + ((grey - lowGrey) / (highGrey - lowGrey)) * (highUnits - lowUnits);
}

const tables = {};
for (const [name, [level, width]] of Object.entries(settings.windows)) {
  tables[name] = Uint8ClampedArray.from({ length: 256 }, (_, grey) =>
    Math.round((255 * (unitsOf(grey) - (level - width / 2))) / width));
}

function pixelsOf(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      canvas.width = image.width;
      canvas.height = image.height;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      resolve(context.getImageData(0, 0, image.width, image.height).data);
    };
    image.onerror = () => reject(new Error("an image of the page is damaged"));
    image.src = url;
  });
}

function startViewer(card) {
  const strips = JSON.parse(card.querySelector("script").textContent);
  const canvas = card.querySelector("canvas");
  const slider = card.querySelector("input[type=range]");
  const label = card.querySelector("output");
  const buttons = [...card.querySelectorAll(".levels button")];
  const outlined = card.querySelector("input[type=checkbox]");
  const loaded = new Map();
  let current = 0;

  async function show(number) {
    current = number;
    const strip = strips[number];
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === number)));
    canvas.width = strip.columns;
    canvas.height = strip.rows;
    slider.max = strip.shown.length - 1;
    const nearest = (z) => Math.abs(z - strip.middle);
    slider.value = strip.shown.reduce((best, z, k) =>
      nearest(z) < nearest(strip.shown[best]) ? k : best, 0);
    outlined.disabled = !strip.outline;
    if (!loaded.has(number)) {
      loaded.set(number, Promise.all(
        [pixelsOf(strip.image), strip.outline ? pixelsOf(strip.outline) : null]));
    }
    await loaded.get(number);
    await paint();
  }

  async function paint() {
    const strip = strips[current];
    const [greys, lines] = await loaded.get(current);
    const index = Number(slider.value);
    const table = tables[card.querySelector("input[type=radio]:checked").value];
    const picture = new ImageData(strip.columns, strip.rows);
    const start = 4 * strip.columns * strip.stride * index;
    for (let k = 0; k < picture.data.length; k += 4) {
      if (lines && outlined.checked && lines[start + k]) {
        picture.data.set([255, 160, 20, 255], k);
      } else {
        const grey = table[greys[start + k]];
        picture.data.set([grey, grey, grey, 255], k);
      }
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
    const text = `${strip.level}: slice ${strip.shown[index] + 1} of ${strip.slices}, counted from the feet`;
    label.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    canvas.dataset.shown = `${strip.level} ${strip.shown[index]}`;
  }

  buttons.forEach((button, k) => button.addEventListener("click", () => show(k)));
  card.querySelectorAll(".viewer input").forEach((input) => input.addEventListener("input", paint));
  return show(Math.min(1, strips.length - 1));
}

// Images are decoded when a card scrolls into view, so that the page opens at once.
const visible = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      visible.unobserve(entry.target);
      startViewer(entry.target);
    }
  }
}, { rootMargin: "400px" });
document.querySelectorAll(".card.scrolls").forEach((card) => visible.observe(card));

// A link into a closed <details> opens it.
function openDetails() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const details = target && target.closest("details");
  if (details) details.open = true;
}
addEventListener("hashchange", openDetails);
openDetails();
