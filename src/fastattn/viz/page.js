"use strict";
for (const part of document.querySelectorAll("section.attention")) {
  const tokens = [...part.querySelectorAll(".tokens .t")], n = tokens.length;
  const heads = [...part.querySelectorAll(".heads input")], ways = [...part.querySelectorAll(".way input")];
  const svg = part.querySelector("svg.matrix"), drawn = svg.querySelector("image");
  const [read, caption] = [part.querySelector(".read"), part.querySelector("details:last-of-type caption")];
  const table = part.querySelector("details:last-of-type"), cells = [...table.querySelectorAll("td")];
  let chosen = Number(part.dataset.start), alpha = null, stale = false;

  // The alpha of a pixel is 255 * sqrt(probability).
  const load = async (uri) => {
    const image = new Image();
    image.src = uri;
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width: n, height: n });
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, n, n).data.filter((_, i) => i % 4 === 3);
  };
  const from = () => ways[1].checked;
  const at = (i, j) => alpha[from() ? j * n + i : i * n + j] / 255;
  const name = (i) => `${i} “${tokens[i].textContent}”`;
  const share = (v) => (v * v >= 0.095 ? `${Math.round(100 * v * v)} %` : `${(100 * v * v).toFixed(1)} %`);
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
    tokens.forEach((token, j) => {
      token.style.setProperty("--v", at(chosen, j).toFixed(3));
      token.classList.toggle("on", j === chosen);
      token.setAttribute("aria-selected", String(j === chosen));
      token.tabIndex = j === chosen ? 0 : -1;
    });
    if (stale && table.open) {
      cells.forEach((cell, i) => (cell.textContent = best(i, 3)));
      table.querySelector("th + th").textContent = from() ? "gets most attention from" : "attends most to";
      caption.textContent = `Where attention goes, ${where()}`;
      stale = false;
    }
  };
  const show = async () => {
    const picture = heads.find((input) => input.checked);
    const uri = picture ? picture.nextElementSibling.src : drawn.getAttribute("href");
    alpha = await load(uri);
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
