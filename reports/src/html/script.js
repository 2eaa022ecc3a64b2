// Tooltips, series toggles, table sorting, theme. The page reads without any of it.
"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme:dark)").matches;
  const name = () => { theme.textContent = dark() ? "Light" : "Dark"; theme.setAttribute("aria-label", `Use the ${dark() ? "light" : "dark"} theme`); };
  theme.hidden = false;
  name();
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });

  const three = v => { const a = Math.abs(v); return a === 0 ? "0" : a >= 99.95 ? v.toFixed(0) : a >= 9.995 ? v.toFixed(1) : a >= 0.9995 ? v.toFixed(2) : a >= 0.09995 ? v.toFixed(3) : v.toFixed(4); };
  const scaled = (v, steps) => { const s = steps.find(s => Math.abs(v) < s[0]) || steps[steps.length - 1]; return `${three(v / s[1])} ${s[2]}`; };
  const show = (v, unit) => {
    if (v === null) return "–";
    if (unit === "ns") return scaled(v, [[999.5, 1, "ns"], [999.5e3, 1e3, "µs"], [999.5e6, 1e6, "ms"], [600e9, 1e9, "s"], [7200e9, 60e9, "min"], [Infinity, 3600e9, "h"]]);
    if (unit === "B/s") return scaled(v, [[999.5, 1, "B/s"], [999.5e3, 1e3, "kB/s"], [999.5e6, 1e6, "MB/s"], [999.5e9, 1e9, "GB/s"], [Infinity, 1e12, "TB/s"]]);
    if (unit === "%") return `${three(v * 100)}%`;
    if (unit === "s") return `${three(v)} s`;
    return v >= 999.5 ? Math.round(v).toLocaleString("en-US") + unit : three(v).replace(/\.0+$/, "") + unit;
  };
  const at = (axis, v) => axis.k === "Nines" ? `${+(v * 100).toFixed(5)}%` : show(v, axis.u);
  const place = (axis, v) => {
    const w = axis.k === "Log" ? x => Math.log10(Math.max(x, axis.a)) : axis.k === "Nines" ? x => -Math.log10(1 - Math.min(x, 0.9999999)) : x => x;
    return (w(v) - w(axis.a)) / (w(axis.b) - w(axis.a));
  };

  const tip = document.getElementById("tip");
  const hide = svg => { tip.hidden = true; const r = svg.querySelector(".rule"); if (r) r.remove(); };
  for (const figure of document.querySelectorAll("figure.chart")) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const off = new Set();
    for (const key of figure.querySelectorAll("button.key")) key.addEventListener("click", () => {
      const i = +key.dataset.series, on = key.getAttribute("aria-pressed") !== "true";
      key.setAttribute("aria-pressed", on);
      on ? off.delete(i) : off.add(i);
      for (const g of figure.querySelectorAll(`g[data-series="${i}"]`)) g.toggleAttribute("hidden", !on);
    });
    const xs = [...new Set(data.s.flatMap(s => s.x))].sort((a, b) => place(data.x, a) - place(data.x, b));
    for (const svg of figure.querySelectorAll(".plot svg")) {
      const [x0, y0, x1, y1] = svg.dataset.plot.split(" ").map(Number);
      let index = -1;
      const point = () => {
        const x = xs[index], px = x0 + place(data.x, x) * (x1 - x0);
        let rule = svg.querySelector(".rule");
        if (!rule) { rule = document.createElementNS("http://www.w3.org/2000/svg", "line"); rule.setAttribute("class", "rule"); svg.append(rule); }
        for (const [k, v] of [["x1", px], ["x2", px], ["y1", y0], ["y2", y1]]) rule.setAttribute(k, v);
        const title = document.createElement("b");
        title.textContent = at(data.x, x);
        const rows = data.s.map((s, i) => [s, i]).filter(([s, i]) => !off.has(i) && s.x.length).map(([s]) => {
          let best = 0;
          for (let i = 1; i < s.x.length; i++) if (Math.abs(place(data.x, s.x[i]) - place(data.x, x)) < Math.abs(place(data.x, s.x[best]) - place(data.x, x))) best = i;
          if (Math.abs(place(data.x, s.x[best]) - place(data.x, x)) > 0.02) return null;
          const row = document.createElement("i"), label = document.createElement("span"), value = document.createElement("span");
          label.textContent = s.n;
          value.textContent = show(s.y[best], data.y.u);
          row.append(label, value);
          return row;
        }).filter(Boolean);
        tip.replaceChildren(title, ...(data.stacked ? rows.reverse() : rows));
        tip.hidden = false;
        const box = svg.getBoundingClientRect(), zoom = box.width / svg.viewBox.baseVal.width;
        const left = box.left + px * zoom, width = tip.offsetWidth;
        tip.style.left = `${Math.max(8, left + 14 + width > innerWidth ? left - 14 - width : left + 14)}px`;
        tip.style.top = `${Math.max(8, Math.min(box.top + y0 * zoom, innerHeight - tip.offsetHeight - 8))}px`;
      };
      svg.setAttribute("tabindex", "0");
      svg.addEventListener("pointermove", event => {
        const box = svg.getBoundingClientRect(), want = ((event.clientX - box.left) / box.width * svg.viewBox.baseVal.width - x0) / (x1 - x0);
        index = 0;
        for (let i = 1; i < xs.length; i++) if (Math.abs(place(data.x, xs[i]) - want) < Math.abs(place(data.x, xs[index]) - want)) index = i;
        point();
      });
      svg.addEventListener("pointerleave", () => hide(svg));
      svg.addEventListener("blur", () => hide(svg));
      svg.addEventListener("keydown", event => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (event.key === "Escape") hide(svg);
        if (!step) return;
        event.preventDefault();
        index = Math.max(0, Math.min(xs.length - 1, index + step));
        point();
      });
    }
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        const value = row => { const cell = row.cells[column]; return cell.dataset.v === undefined ? cell.textContent : +cell.dataset.v; };
        const unknown = v => v === "–";
        rows.sort((a, b) => {
          const [x, y] = [value(a), value(b)];
          if (unknown(x) || unknown(y)) return unknown(x) - unknown(y);
          const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
          return down ? -order : order;
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
})();
