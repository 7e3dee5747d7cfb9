(() => {
  "use strict";
  const { charts, norms } = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const hidden = new Set();
  let logarithmic = false, paper = null;

  const isDark = () => scheme.matches && !root.classList.contains("paper");
  const colour = (norm) => norms[norm][isDark() ? 1 : 0];
  const theme = () => (isDark()
    ? { ink: "#e6edf3", muted: "#9da7b3", line: "#2b323b", surface: "#161b22" }
    : { ink: "#1c2128", muted: "#57606a", line: "#e2e4e8", surface: "#ffffff" });
  const font = getComputedStyle(document.body).fontFamily;
  const isOn = (trace) => !hidden.has(trace.meta.norm);

  function paint(trace, chart) {
    const { norm, role, label } = trace.meta;
    const c = colour(norm), unit = chart.percent ? "%{y:.3~g}%" : "%{y:,.4~g}";
    const made = { ...trace, name: label, showlegend: false, visible: isOn(trace) };
    if (role !== "lane") {
      const where = chart.id.startsWith("curves") ? "epoch %{customdata}" : "%{customdata} images";
      const value = role === "mean" ? "" : `${unit} · `;
      made.hovertemplate = `<b>${label}</b> · ${where}<br>${value}%{text}<extra></extra>`;
    }
    made.line = { ...trace.line, color: c };
    made.marker = { ...trace.marker, color: c };
    if (role === "seed") Object.assign(made, { opacity: 0.4, marker: { color: c, size: 6 } });
    if (role === "seed-curve") made.opacity = 0.32;
    if (role === "lane") {
      made.textfont = { color: c, size: 12 };
      made.marker.line = { color: c, width: 1.6 };
      made.hoverlabel = { align: "left" };
    }
    if (trace.error_y) made.error_y = { ...trace.error_y, color: c };
    return made;
  }

  // The range of the values shown; with the same name of shared_range in several charts, of all of them.
  function range(chart) {
    const together = chart.shared_range ? charts.filter((other) => other.shared_range === chart.shared_range) : [chart];
    const values = together.flatMap((c) => c.data.filter((t) => isOn(t) && t.meta.role !== "lane").flatMap((t) => t.y));
    const onLog = chart.log && logarithmic;
    const known = values.filter((v) => v !== null && (!onLog || v > 0));
    const zeros = onLog && values.some((v) => v === 0);
    if (!known.length) return { zeros, ends: onLog ? [0, 2] : [0, chart.percent ? 100 : 1] };
    // Intervals are shown too, but a wide one must not make everything else small.
    const bars = together.flatMap((c) => c.data.filter((t) => isOn(t) && t.error_y).flatMap((t) => t.y.flatMap(
      (y, i) => [y + t.error_y.array[i], y - t.error_y.arrayminus[i]])));
    const high = Math.max(...known), low = Math.min(...known);
    const top = Math.max(high, ...bars.map((v) => Math.min(v, high * 1.3)));
    const bottom = Math.min(low, ...bars.map((v) => Math.max(v, low / 1.8)));
    return { zeros, ends: onLog ? [Math.log10(bottom / 1.12), Math.log10(top * 1.2)] : [0, top * 1.05 || 1] };
  }

  function logTicks([low, high]) {
    const few = high - low > 2.5 ? [1] : high - low > 0.6 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
    const found = [];
    for (let power = Math.floor(low); power <= high; power += 1) {
      found.push(...few.map((f) => Number((f * 10 ** power).toPrecision(3))));
    }
    return found.filter((v) => Math.log10(v) >= low && Math.log10(v) <= high);
  }

  // Names right of the plot at the heights where the lines end, moved apart where they would overlap.
  function endLabels(chart, ends, pixels) {
    const gap = 15, onLog = chart.log && logarithmic;
    const labels = chart.data.filter((t) => t.meta.role === "mean" && isOn(t)).map((t) => {
      const last = t.y.findLastIndex((v) => v !== null && (!onLog || v > 0));
      const value = last < 0 ? NaN : onLog ? Math.log10(t.y[last]) : t.y[last];
      return { t, value, wanted: ((value - ends[0]) / (ends[1] - ends[0])) * pixels };
    }).filter((label) => Number.isFinite(label.value)).sort((a, b) => a.wanted - b.wanted);
    const clusters = [];
    for (const label of labels) {
      clusters.push({ centre: label.wanted, members: [label] });
      while (clusters.length > 1) {
        const [a, b] = clusters.slice(-2);
        if (b.centre - a.centre >= (gap * (a.members.length + b.members.length)) / 2) break;
        const members = [...a.members, ...b.members];
        const centre = members.reduce((sum, m) => sum + m.wanted, 0) / members.length;
        clusters.splice(-2, 2, { centre, members });
      }
    }
    const placed = clusters.flatMap(({ centre, members }) => members.map((m, i) => (
      { ...m, place: centre + gap * (i - (members.length - 1) / 2) })));
    placed.forEach((m, i) => { m.place = Math.max(m.place, gap * i); }); // none below the axis
    placed.toReversed().forEach((m, i) => { m.place = Math.min(m.place, pixels - gap * i); });
    return placed.map((m) => ({
      xref: "paper", x: 1, xanchor: "left", xshift: 8, yref: "y", y: m.value, yanchor: "middle", showarrow: false,
      yshift: m.place - m.wanted, text: `<b>${m.t.meta.label}</b>`,
      font: { color: colour(m.t.meta.norm), size: 13 },
    }));
  }

  function draw(chart) {
    const div = document.getElementById(chart.id), { ink, muted, line, surface } = theme();
    const { ends, zeros } = range(chart), onLog = chart.log && logarithmic;
    const labelled = chart.data.filter((t) => t.meta.role === "mean" && t.y.length);
    const longest = Math.max(0, ...labelled.map((t) => t.meta.label.length));
    const margin = { t: 8, b: 44, l: 52, r: labelled.length ? 20 + 9 * Math.min(longest, 16) : 12 };
    const height = chart.height - margin.t - margin.b, share = 1 - (chart.lanes || 0) / height;
    const layout = {
      height: chart.height, width: paper ? paper(chart) : undefined, autosize: !paper, margin, hovermode: "closest",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: font, color: muted, size: 12 }, dragmode: false,
      hoverlabel: { bgcolor: surface, font: { family: font, color: ink, size: 13 }, align: "left" },
      xaxis: { zeroline: false, showgrid: false, linecolor: muted, ticks: "", fixedrange: true, ...chart.xaxis },
      yaxis: {
        type: onLog ? "log" : "linear", range: ends, domain: [0, share], gridcolor: line, zeroline: false, fixedrange: true,
        ticksuffix: chart.percent ? "%" : "", tickformat: chart.percent ? "~g" : ",~g", nticks: 6,
        ...(onLog ? { tickvals: logTicks(ends), ticksuffix: "", ticktext: logTicks(ends).map((v) => `${v}%`) } : {}),
      },
      annotations: endLabels(chart, ends, height * share),
    };
    layout.xaxis.title = { text: chart.xaxis.title, standoff: 8, font: { size: 12 } };
    if (chart.xaxis.title === "epoch") Object.assign(layout.xaxis, epochs(chart));
    if (chart.lanes) {
      const lanes = chart.lanes / 34;
      layout.yaxis2 = { domain: [share, 1], range: [lanes, 0], visible: false, fixedrange: true };
    }
    document.querySelectorAll(".zeros").forEach((note) => { if (chart.id === "error") note.hidden = !zeros; });
    Plotly.react(div, chart.data.map((trace) => paint(trace, chart)), layout, {
      responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false,
    });
  }

  function epochs(chart) {
    const last = Math.max(1, ...charts.filter((c) => c.shared_range === chart.shared_range)
      .flatMap((c) => c.data.flatMap((t) => t.x)));
    const pad = Math.max(0.15, last * 0.02);
    return { range: [1 - pad, last + pad], dtick: last <= 8 ? 1 : undefined, nticks: 6, tickformat: "d" };
  }

  const drawAll = () => charts.forEach(draw);
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  const chips = [...document.querySelectorAll(".chip[data-norm]")];
  const all = document.getElementById("all");
  const scales = [...document.querySelectorAll("[data-log]")];

  function update() {
    chips.forEach((chip) => press(chip, !hidden.has(chip.dataset.norm)));
    if (all) press(all, hidden.size === 0);
    scales.forEach((button) => press(button, (button.dataset.log === "true") === logarithmic));
    drawAll();
  }
  chips.forEach((chip) => chip.addEventListener("click", () => {
    const norm = chip.dataset.norm;
    if (!hidden.delete(norm)) hidden.add(norm);
    update();
  }));
  all?.addEventListener("click", () => {
    if (hidden.size) hidden.clear(); else chips.forEach((chip) => hidden.add(chip.dataset.norm));
    update();
  });
  scales.forEach((button) => button.addEventListener("click", () => {
    logarithmic = button.dataset.log === "true";
    update();
  }));

  document.querySelectorAll(".sortable").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value;
      const rows = [...body.rows].sort((a, b) => {
        if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
        return (key(a) - key(b)) * (down ? -1 : 1);
      });
      body.append(...rows);
    }));
  });

  const sizes = new ResizeObserver((entries) => requestAnimationFrame(() => entries.forEach(({ target }) =>
    target.classList.toggle("cut", target.scrollWidth > target.clientWidth))));
  document.querySelectorAll(".scroll").forEach((region) => sizes.observe(region));

  const copy = document.getElementById("copy");
  copy.addEventListener("click", async () => {
    const code = document.getElementById("command");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    copy.textContent = "Copied";
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });

  const details = [...document.querySelectorAll("details")];
  scheme.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => {
    root.classList.add("paper");
    details.forEach((one) => { one.dataset.open = one.open; one.open = true; });
    paper = (chart) => (chart.id.startsWith("curves") ? 300 : 640);
    drawAll();
  });
  addEventListener("afterprint", () => {
    root.classList.remove("paper");
    details.forEach((one) => { one.open = one.dataset.open === "true"; });
    paper = null;
    drawAll();
  });
  update();
  root.dataset.ready = "true";
})();
