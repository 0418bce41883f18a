"use strict";
for (const part of document.querySelectorAll("section.attention")) {
  const tokens = [...part.querySelectorAll(".tokens .t")], n = tokens.length;
  const heads = [...part.querySelectorAll(".heads input")], ways = [...part.querySelectorAll(".way input")];
  const svg = part.querySelector("svg.matrix"), drawn = svg.querySelector("image");
  const read = part.querySelector(".read");
  const table = [...part.querySelectorAll("details")].pop(), cells = [...table.querySelectorAll("td")];
  let chosen = Number(part.dataset.start), shares = null, stale = false;

  // The alpha of a pixel is 255 * probability ** gamma.
  const load = async (uri) => {
    const image = new Image();
    image.src = uri;
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width: n, height: n });
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, n, n).data, power = 1 / Number(part.dataset.gamma);
    return Float32Array.from({ length: n * n }, (_, i) => (pixels[4 * i + 3] / 255) ** power);
  };
  const from = () => ways[1].checked;
  const at = (i, j) => shares[from() ? j * n + i : i * n + j];
  const name = (i) => `${i} “${tokens[i].textContent}”`;
  const share = (v) => (v < 0.0005 ? "under 0.1 %" : v >= 0.0995 ? `${Math.round(100 * v)} %` : `${(100 * v).toFixed(1)} %`);
  const best = (i, k) => [...tokens.keys()].sort((a, b) => at(i, b) - at(i, a) || a - b).slice(0, k)
    .filter((j) => at(i, j) > 0).map((j) => `${name(j)} ${share(at(i, j))}`).join(", ");
  const where = () => (heads.find((input) => input.checked) || { value: read.querySelector(".where").textContent }).value;

  const paint = () => {
    const place = document.createElement("b");
    place.className = "where";
    place.textContent = where();
    const list = best(chosen, 5) || "no token";
    const middle = from() ? `token ${name(chosen)} gets attention from` : `token ${name(chosen)} attends to`;
    read.replaceChildren("In ", place, `, ${middle} ${list}`);
    const most = tokens.reduce((top, _, j) => Math.max(top, at(chosen, j)), 1e-38);
    tokens.forEach((token, j) => {
      token.style.setProperty("--v", Math.sqrt(at(chosen, j) / most).toFixed(3));
      token.classList.toggle("on", j === chosen);
      token.setAttribute("aria-selected", String(j === chosen));
      token.tabIndex = j === chosen ? 0 : -1;
    });
    if (stale && table.open) {
      cells.forEach((cell, i) => (cell.textContent = best(i, 3)));
      table.querySelector("th + th").textContent = from() ? "gets most attention from" : "attends most to";
      table.querySelector("caption span").textContent = `Where attention goes, ${where()}`;
      stale = false;
    }
  };
  const show = async () => {
    const picture = heads.find((input) => input.checked);
    const uri = picture ? picture.nextElementSibling.dataset.map : drawn.getAttribute("href");
    shares = await load(uri);
    drawn.setAttribute("href", uri);
    if (picture) svg.querySelector("title").textContent = picture.nextElementSibling.alt;
    paint();
  };
  const choose = (i, focus) => {
    chosen = Math.max(0, Math.min(n - 1, i));
    paint();
    if (focus) tokens[chosen].focus();
  };

  const list = part.querySelector(".tokens");
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "Tokens. The arrow keys choose one.");
  list.setAttribute("aria-orientation", "horizontal");
  tokens.forEach((token, i) => {
    token.setAttribute("role", "option");
    token.addEventListener("click", () => choose(i, true));
  });
  list.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, ArrowUp: chosen - 10, ArrowDown: chosen + 10, Home: 0, End: n - 1 }[event.key];
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    choose(to, true);
  });
  heads.forEach((input) => input.addEventListener("change", () => { stale = true; show(); }));
  ways.forEach((input) => input.addEventListener("change", () => { stale = true; paint(); }));
  table.addEventListener("toggle", paint);
  part.querySelector(".way").hidden = false;
  show();
}
