"use strict";
(() => {
  const root = document.documentElement;
  const make = (name, attributes = {}, parent = null) => {
    const svg = parent instanceof SVGElement;
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (parent) parent.append(node);
    return node;
  };
  const said = (value) => {
    if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(1).replace("e+", "e").replace(/-/g, "−");
    return value.toLocaleString("en", { maximumFractionDigits: 3 }).replace("-", "−");
  };
  const off = (family) => document.querySelector(`[data-toggle="${family}"]`)?.checked === false;

  root.classList.add("js");

  const theme = document.querySelector(".theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  for (const box of document.querySelectorAll("[data-toggle]")) {
    box.addEventListener("change", () => {
      for (const node of document.querySelectorAll(`[data-family="${box.dataset.toggle}"]`)) node.classList.toggle("off", !box.checked);
    });
  }

  const tip = make("div", { class: "tip", role: "status", hidden: "" }, document.body);
  const place = (x, y) => {
    tip.hidden = false;
    const room = root.clientWidth;
    const left = x + 14 + tip.offsetWidth > room ? Math.max(4, x - 14 - tip.offsetWidth) : x + 14;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${Math.max(4, y - 10 - tip.offsetHeight) + scrollY}px`;
  };
  const hide = () => { tip.hidden = true; };

  // What browsers show for <title> comes late and cannot be styled; without this script it is what there is.
  for (const title of document.querySelectorAll(".chart title")) {
    const mark = title.parentNode;
    const words = title.textContent;
    title.remove();
    mark.addEventListener("pointermove", (event) => { tip.textContent = words; place(event.clientX, event.clientY); event.stopPropagation(); });
    mark.addEventListener("pointerleave", hide);
  }

  const steps = (low, high, about, whole = false) => {
    const rough = Math.max((high - low) / about, whole ? 1 : 0);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = (whole ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10]).map((nice) => nice * power).find((one) => one >= rough * 0.999999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(Number((i * step).toPrecision(12)));
    return found;
  };
  const decades = (low, high, about) => {
    const first = Math.ceil(Math.log10(low) - 1e-9);
    const last = Math.floor(Math.log10(high) + 1e-9);
    if (last - first < 1) return steps(low, high, about);
    const every = Math.max(1, Math.ceil((last - first) / about));
    return Array.from({ length: last - first + 1 }, (_, i) => first + i).filter((power) => power % every === 0).map((power) => 10 ** power);
  };

  const chart = (svg) => {
    const held = JSON.parse(svg.dataset.chart);
    const [left, top, width, height] = held.box;
    const whole = { x: held.x, y: held.y.map((v) => (held.log ? Math.log10(v) : v)) };
    let view = { x: [...whole.x], y: [...whole.y] };
    let reading = null;
    let start = null;
    const inner = svg.querySelector(".plot");
    const rule = make("line", { class: "rule", y1: top, y2: top + height, visibility: "hidden" }, svg);
    const frame = make("rect", { class: "zoom", visibility: "hidden" }, svg);
    const reset = make("button", { type: "button", class: "reset", hidden: "" });
    reset.textContent = "Whole chart";
    svg.before(reset);

    const toX = (value) => left + ((value - view.x[0]) / (view.x[1] - view.x[0])) * width;
    const toY = (value) => top + height - ((value - view.y[0]) / (view.y[1] - view.y[0])) * height;
    const fromX = (px) => view.x[0] + ((px - left) / width) * (view.x[1] - view.x[0]);
    const fromY = (px) => view.y[0] + ((top + height - px) / height) * (view.y[1] - view.y[0]);

    const draw = () => {
      const share = (of, value) => (value - whole[of][0]) / (whole[of][1] - whole[of][0]);
      const x = share("x", view.x[0]) * width;
      const w = share("x", view.x[1]) * width - x;
      const y = (1 - share("y", view.y[1])) * height;
      const h = (1 - share("y", view.y[0])) * height - y;
      inner.setAttribute("viewBox", `${x} ${y} ${w} ${h}`);
      for (const strip of svg.querySelectorAll(".strip")) strip.setAttribute("viewBox", `${x} 0 ${w} ${strip.getAttribute("height")}`);
      const ticks = svg.querySelector(".ticks");
      for (const node of [...ticks.children]) if (!node.classList.contains("title")) node.remove();
      const values = held.log ? decades(10 ** view.y[0], 10 ** view.y[1], 5) : steps(...view.y, 5);
      for (const value of values) {
        const at = toY(held.log ? Math.log10(value) : value);
        make("line", { class: "grid", x1: left, x2: left + width, y1: at, y2: at }, ticks);
        make("text", { class: "tick y", x: left - 7, y: at + 4 }, ticks).textContent = said(value);
      }
      const marked = held.ticks.length ? held.ticks : steps(...view.x, Math.max(3, Math.floor(width / 70)), held.whole).map((value) => [value, said(value)]);
      for (const [value, words] of marked) {
        const at = toX(value);
        if (at < left - 1 || at > left + width + 1) continue;
        make("line", { class: "axis", x1: at, x2: at, y1: top + height, y2: top + height + 4 }, ticks);
        make("text", { class: "tick x", x: at, y: top + height + 17 }, ticks).textContent = words;
      }
      make("line", { class: "axis", x1: left, x2: left + width, y1: top + height, y2: top + height }, ticks);
      for (const node of svg.querySelectorAll(".name:not(.tick), .mark")) node.setAttribute("visibility", reset.hidden ? "visible" : "hidden");
    };
    const zoom = (x, y) => {
      view = { x, y };
      reset.hidden = x[0] === whole.x[0] && x[1] === whole.x[1] && y[0] === whole.y[0] && y[1] === whole.y[1];
      draw();
    };
    const shut = () => zoom([...whole.x], [...whole.y]);
    reset.addEventListener("click", shut);

    const nearest = (wanted) => {
      let best = null;
      for (const curve of held.curves) {
        if (off(curve.family)) continue;
        for (const x of curve.x) {
          if (x >= view.x[0] && x <= view.x[1] && (best === null || Math.abs(x - wanted) < Math.abs(best - wanted))) best = x;
        }
      }
      return best;
    };
    const read = (x, clientX, clientY) => {
      reading = x;
      rule.setAttribute("visibility", "visible");
      rule.setAttribute("x1", toX(x));
      rule.setAttribute("x2", toX(x));
      const named = held.ticks.find(([value]) => value === x);
      tip.replaceChildren(make("b"));
      tip.firstChild.textContent = `${held.xTitle} ${named ? named[1] : said(x)}`;
      for (const curve of held.curves) {
        const i = curve.x.indexOf(x);
        if (i < 0 || off(curve.family)) continue;
        tip.append(make("br"));
        make("span", { class: `c${curve.family % 7}` }, tip).textContent = curve.name;
        const range = curve.low && curve.low[i] !== curve.high[i] ? ` (${said(curve.low[i])} … ${said(curve.high[i])})` : "";
        tip.append(` ${said(curve.y[i])}${range}`);
      }
      place(clientX, clientY);
    };
    const blind = () => { rule.setAttribute("visibility", "hidden"); reading = null; hide(); };
    const at = (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
      return [clamp((event.clientX - box.left) * scale, left, left + width), clamp((event.clientY - box.top) * scale, top, top + height)];
    };
    const within = (event) => {
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      return (event.clientY - box.top) * scale <= top + height + 20;
    };

    svg.addEventListener("pointermove", (event) => {
      const [px, py] = at(event);
      if (start) {
        const tall = Math.abs(py - start[1]) > 18;
        frame.setAttribute("visibility", "visible");
        frame.setAttribute("x", Math.min(px, start[0]));
        frame.setAttribute("width", Math.abs(px - start[0]));
        frame.setAttribute("y", tall ? Math.min(py, start[1]) : top);
        frame.setAttribute("height", tall ? Math.abs(py - start[1]) : height);
        return;
      }
      const x = within(event) ? nearest(fromX(px)) : null;
      if (x === null) blind(); else read(x, event.clientX, event.clientY);
    });
    svg.addEventListener("pointerleave", blind);
    svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && event.button === 0 && within(event)) {
        start = at(event);
        svg.setPointerCapture(event.pointerId);
        event.preventDefault();
      }
    });
    svg.addEventListener("pointerup", (event) => {
      if (!start) return;
      const [from, to] = [start, at(event)];
      start = null;
      frame.setAttribute("visibility", "hidden");
      if (Math.abs(to[0] - from[0]) < 8) return;
      const xs = [from[0], to[0]].sort((a, b) => a - b).map(fromX);
      const ys = Math.abs(to[1] - from[1]) > 18 ? [from[1], to[1]].sort((a, b) => b - a).map(fromY) : view.y;
      zoom(xs, ys);
    });
    svg.addEventListener("dblclick", shut);
    svg.setAttribute("tabindex", "0");
    svg.addEventListener("blur", blind);
    svg.addEventListener("keydown", (event) => {
      const xs = [...new Set(held.curves.filter((curve) => !off(curve.family)).flatMap((curve) => curve.x))].filter((x) => x >= view.x[0] && x <= view.x[1]).sort((a, b) => a - b);
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (move && xs.length) {
        const i = reading === null ? (move > 0 ? 0 : xs.length - 1) : Math.min(xs.length - 1, Math.max(0, xs.indexOf(reading) + move));
        const box = svg.getBoundingClientRect();
        read(xs[i], box.left + (toX(xs[i]) * box.width) / svg.viewBox.baseVal.width, box.top + 30);
      } else if (event.key === "+" || event.key === "-") {
        const middle = reading ?? (view.x[0] + view.x[1]) / 2;
        const half = ((view.x[1] - view.x[0]) / 2) * (event.key === "+" ? 0.5 : 2);
        zoom([Math.max(whole.x[0], middle - half), Math.min(whole.x[1], middle + half)], view.y);
      } else if (event.key === "0" || event.key === "Escape") {
        shut();
        blind();
      } else return;
      event.preventDefault();
    });
  };
  document.querySelectorAll("[data-chart]").forEach(chart);
})();
