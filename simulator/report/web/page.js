"use strict";
(() => {
  const all = (query, from = document) => [...from.querySelectorAll(query)];
  const say = (text) => { document.getElementById("said").textContent = text; };
  document.documentElement.classList.add("js");

  // Sorting: numbers by size, text by letters, what is missing last.
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };
  const sortBy = (button) => {
    const head = button.closest("th"), table = button.closest("table"), body = table.tBodies[0];
    const column = head.cellIndex, down = head.getAttribute("aria-sort") === "ascending";
    const value = (row) => row.cells[column].dataset.v;
    const rows = [...body.rows].map((row, place) => ({ row, place }));
    rows.sort((a, b) => {
      const x = value(a.row), y = value(b.row);
      const order = compare(x, y);
      return (down && x !== "" && y !== "" ? -order : order) || a.place - b.place;
    });
    for (const cell of table.tHead.rows[0].cells) cell.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows.map((entry) => entry.row));
    say(`sorted by ${button.textContent}, ${down ? "descending" : "ascending"}`);
  };
  for (const button of all("table.sortable thead button")) {
    button.addEventListener("click", () => sortBy(button));
  }

  // Filtering: every word must be in the row; its points in the charts go with it.
  const filter = (section) => {
    const words = section.querySelector("input[type=search]").value.toLowerCase().split(/\s+/);
    const table = section.querySelector(".filtered table");
    const gone = new Set();
    let left = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      if (row.hidden) gone.add(row.dataset.key); else left += 1;
    }
    for (const point of all(".pt[data-key]", section)) {
      point.style.display = gone.has(point.dataset.key) ? "none" : "";
    }
    for (const group of all(".pts", section)) rove(group);
    const text = `${left} of ${table.tBodies[0].rows.length} plans`;
    section.querySelector(".count").textContent = text;
  };
  // One point of a chart is in the tab order; arrow keys move to the next one that is shown.
  const rove = (group) => {
    const shown = all(".pt", group).filter((point) => point.style.display !== "none");
    for (const point of all(".pt", group)) point.setAttribute("tabindex", "-1");
    if (shown.length) shown[0].setAttribute("tabindex", "0");
    return shown;
  };
  for (const section of all("section.search")) {
    const input = section.querySelector("input[type=search]");
    if (!input) continue;
    input.addEventListener("input", () => filter(section));
  }

  // Points: a tooltip on hover and focus, the row of the table on click and Enter.
  const tip = document.getElementById("tip");
  const twins = (target, is) => {
    if (!target.dataset.key) return;
    for (const same of all(`.pt[data-key="${CSS.escape(target.dataset.key)}"]`)) {
      same.classList.toggle("near", is);
    }
  };
  const show = (target) => {
    twins(target, true);
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const box = target.getBoundingClientRect(), mine = tip.getBoundingClientRect();
    const wide = document.documentElement.clientWidth;
    const left = Math.min(Math.max(4, box.left + box.width / 2 - mine.width / 2),
      wide - mine.width - 4);
    const above = box.top - mine.height - 8;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 0 ? above : box.bottom + 8) + scrollY}px`;
  };
  const hide = (target) => { tip.hidden = true; twins(target, false); };
  const pick = (point) => {
    const section = point.closest("section");
    for (const old of all(".on", section)) old.classList.remove("on");
    const key = CSS.escape(point.dataset.key);
    for (const same of all(`.pt[data-key="${key}"]`, section)) same.classList.add("on");
    const row = section.querySelector(`tr[data-key="${key}"]`);
    if (!row) return;
    row.classList.add("on");
    row.scrollIntoView({ block: "center" });
    say(`row of ${point.dataset.tip} marked`);
  };
  for (const target of all("[data-tip]")) {
    target.addEventListener("mouseenter", () => show(target));
    target.addEventListener("mouseleave", () => hide(target));
    target.addEventListener("focus", () => show(target));
    target.addEventListener("blur", () => hide(target));
    if (target.dataset.key) target.addEventListener("click", () => pick(target));
    target.addEventListener("keydown", (event) => {
      if (event.key === "Escape") hide(target);
      if (event.key === "Enter" && target.dataset.key) pick(target);
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const group = target.closest(".pts");
      if (!step || !group) return;
      event.preventDefault();
      const shown = rove(group);
      const next = shown[(shown.indexOf(target) + step + shown.length) % shown.length];
      shown[0].setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  }

  for (const button of all("button[data-copies]")) {
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copies).textContent;
      try {
        await navigator.clipboard.writeText(text);
        say("command copied");
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(document.getElementById(button.dataset.copies));
        say("command selected");
      }
    });
  }
})();
