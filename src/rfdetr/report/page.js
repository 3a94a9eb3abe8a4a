"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector) => document.querySelector(selector);
const percent = (share) => (Number.isFinite(share) ? (100 * share).toFixed(1) + "%" : "-");

/* Tables: a click on a column's name sorts by it, a second one the other way. */
for (const button of all("table.sortable thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const column = [...head.parentNode.children].indexOf(head);
    const falls = head.getAttribute("aria-sort") !== "descending";
    const value = (row) => row.children[column].dataset.value ?? row.children[column].textContent;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)], [m, n] = [parseFloat(x), parseFloat(y)];
      if (Number.isNaN(m) && Number.isNaN(n)) return x.localeCompare(y);
      if (Number.isNaN(m) || Number.isNaN(n)) return Number.isNaN(m) ? 1 : -1; // undefined last
      return falls ? n - m : m - n;
    };
    const rows = [...body.rows].sort(order);
    if (head.dataset.text !== undefined && falls) rows.reverse();
    body.append(...rows);
    all("th", table.tHead).forEach((th) => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
  });
}

/* Thresholds: what each of them gives, from the counts at 0.00, 0.01, ..., 1.00. */
const { names, sweep, threshold } = data;
const chosen = names.map(() => threshold);
const rates = (labels) => {
  let right = 0, wrong = 0, objects = 0;
  for (const k of labels) {
    const at = Math.round(100 * chosen[k]);
    right += sweep.right[k][at]; wrong += sweep.wrong[k][at]; objects += sweep.objects[k];
  }
  return {
    precision: right / (right + wrong), recall: right / objects,
    f1: (2 * right) / (right + wrong + objects), wrong: wrong / sweep.images,
  };
};
const best = (labels) => {
  let most = -1, at = threshold;
  for (let step = 1; step <= 100; step++) {
    for (const k of labels) chosen[k] = step / 100;
    const { f1 } = rates(labels);
    if (f1 > most + 1e-12) [most, at] = [f1, step / 100];
  }
  for (const k of labels) chosen[k] = at;
};
const everything = names.map((_, k) => k).filter((k) => sweep.objects[k]);
const fill = (row, r) => {
  const shown = [percent(r.precision), percent(r.recall), percent(r.f1), r.wrong.toFixed(2)];
  shown.forEach((text, i) => { row.querySelectorAll("td.num")[i].textContent = text; });
};
function refresh() {
  const labels = names.map((_, k) => k), common = new Set(chosen).size === 1;
  for (const k of labels) {
    const row = one(`#threshold-${k}`);
    row.querySelector("input").value = chosen[k];
    row.querySelector("output").textContent = chosen[k].toFixed(2);
    fill(row, rates([k]));
  }
  if (common) one("#threshold-all").value = chosen[0];
  one("#threshold-all-value").textContent = common ? chosen[0].toFixed(2) : "one for each class";
  fill(one("#threshold-total"), rates(labels));
  one("#threshold-json").value = JSON.stringify(Object.fromEntries(names.map((n, k) => [n, chosen[k]])));
  one("#copied").textContent = "";
}
one("#threshold-all").addEventListener("input", (event) => {
  chosen.fill(Number(event.target.value)); refresh();
});
names.forEach((_, k) => one(`#threshold-${k} input`).addEventListener("input", (event) => {
  chosen[k] = Number(event.target.value); refresh();
}));
one("#use-recommended").addEventListener("click", () => { chosen.fill(threshold); refresh(); });
one("#use-common").addEventListener("click", () => {
  best(everything); chosen.fill(everything.length ? chosen[everything[0]] : threshold); refresh();
});
one("#use-own").addEventListener("click", () => { everything.forEach((k) => best([k])); refresh(); });
one("#copy").addEventListener("click", async () => {
  const text = one("#threshold-json");
  let done = true;
  try { await navigator.clipboard.writeText(text.value); } catch {
    text.select(); done = document.execCommand("copy"); // pages from a file may not use the other
  }
  one("#copied").textContent = done ? "Copied." : "Copy the marked text by hand.";
});
if (names.length) refresh();

/* Confusion: a cell opens its pictures. */
for (const button of all(".matrix button")) {
  button.addEventListener("click", () => {
    const opens = button.getAttribute("aria-expanded") !== "true";
    all(".matrix button").forEach((other) => other.setAttribute("aria-expanded", "false"));
    all(".cell-pictures").forEach((place) => { place.hidden = true; });
    button.setAttribute("aria-expanded", String(opens));
    const place = document.getElementById(button.getAttribute("aria-controls"));
    place.hidden = !opens;
    if (opens) place.scrollIntoView({ block: "nearest" });
  });
}

/* Filters: each chip shows the figures of one kind. */
function filter(group, kind) {
  let count = 0;
  for (const item of all(`#${group} .item`)) {
    item.hidden = kind !== "" && !item.dataset.kinds.split("|").includes(kind);
    count += item.hidden ? 0 : 1;
  }
  all(`#${group} .chips [data-kind]`).forEach((chip) => {
    chip.setAttribute("aria-pressed", String(chip.dataset.kind === kind));
  });
  one(`#${group} .count`).textContent = `${count} shown`;
}
all(".chips [data-kind]").forEach((chip) => chip.addEventListener("click", () => {
  filter(chip.closest("section").id, chip.dataset.kind);
}));
all("a[data-filter]").forEach((link) => link.addEventListener("click", () => {
  filter("worst", link.dataset.filter);
}));
all("[data-boxes]").forEach((box) => box.addEventListener("change", () => {
  document.body.classList.toggle(`no-${box.dataset.boxes}`, !box.checked);
  all(`[data-boxes=${box.dataset.boxes}]`).forEach((other) => { other.checked = box.checked; });
}));
