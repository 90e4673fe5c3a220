"use strict";

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className || "";
  made.textContent = text === undefined ? "" : text;
  return made;
}

// Charts: the values at the pointer.
for (const chart of document.querySelectorAll(".chart")) {
  const lines = JSON.parse(chart.querySelector("script").textContent);
  const area = chart.querySelector(".area"), cursor = chart.querySelector(".cursor"), tip = chart.querySelector(".tip");
  let dots = [];

  function leave() {
    cursor.hidden = tip.hidden = true;
    dots.forEach((dot) => dot.remove());
    dots = [];
  }

  function point(event) {
    leave();
    const place = area.getBoundingClientRect();
    const at = (100 * (event.clientX - place.left)) / place.width;
    const distance = (one) => Math.abs(one[0] - at);
    const found = lines.map((line) => line.points.reduce((best, one) => (distance(one) < distance(best) ? one : best)));
    if (!found.length) return;
    const nearest = found.reduce((best, one) => (distance(one) < distance(best) ? one : best));
    cursor.style.left = nearest[0] + "%";
    tip.replaceChildren(element("div", "", nearest[2]));
    lines.forEach((line, i) => {
      const color = "c" + (line.color % 8), row = element("div", color);
      const elsewhere = found[i][2] === nearest[2] ? "" : " at " + found[i][2];
      row.append(element("span", "", line.name + elsewhere), element("b", "", found[i][3]));
      tip.append(row);
      const dot = element("i", "dot " + color);
      dot.style.left = found[i][0] + "%";
      dot.style.bottom = found[i][1] + "%";
      dots.push(dot);
    });
    area.append(...dots);
    cursor.hidden = tip.hidden = false;
    const room = place.width - tip.offsetWidth;
    tip.style.left = Math.max(Math.min(0, room), Math.min(room, (place.width * nearest[0]) / 100 + (at > 50 ? -tip.offsetWidth - 12 : 12))) + "px";
  }

  area.addEventListener("pointermove", point);
  area.addEventListener("pointerdown", point);
  area.addEventListener("pointerleave", leave);
}

// Reconstructions: the slider moves the border in all pictures of its section, the pointer in the one that it is on.
for (const section of document.querySelectorAll(".compare")) {
  section.querySelector("input[type=range]").addEventListener("input", (event) => {
    section.style.setProperty("--cut", event.target.value + "%");
  });
  for (const box of section.querySelectorAll(".box")) {
    box.addEventListener("pointermove", (event) => {
      const place = box.getBoundingClientRect();
      box.style.setProperty("--at", (100 * (event.clientX - place.left)) / place.width + "%");
    });
    box.addEventListener("pointerleave", () => box.style.removeProperty("--at"));
  }
}

// Codes: what is known of the one at the pointer.
for (const map of document.querySelectorAll(".map")) {
  const codes = [...map.querySelectorAll(".codes button")];
  const tile = map.querySelector(".tile"), text = map.querySelector(".detail p"), near = map.querySelector(".near");

  function draw(target, code) {
    target.style.setProperty("--x", code.style.getPropertyValue("--x"));
    target.style.setProperty("--y", code.style.getPropertyValue("--y"));
  }

  function show(code) {
    const others = code.dataset.near.split(" ").filter((place) => place in codes);
    codes.forEach((one) => one.classList.toggle("chosen", one === code));
    tile.classList.add("of");
    draw(tile, code);
    text.textContent = `Code ${code.textContent}: used ${code.dataset.uses} times, ${code.dataset.relative} times as often as the average.` + (others.length ? " Nearest:" : "");
    near.replaceChildren(...others.map((place) => {
      const other = codes[place], made = element("button", "", other.textContent);
      made.setAttribute("aria-label", "code " + other.textContent);
      draw(made, other);
      made.addEventListener("click", () => show(other));
      return made;
    }));
  }

  for (const code of codes) {
    code.addEventListener("pointerenter", () => show(code));
    code.addEventListener("focus", () => show(code));
  }
  if (codes.length) show(codes[0]);
}
