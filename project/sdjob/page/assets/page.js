"use strict";
// The page of a run. Data come from the page itself, then again and again from run/report_data.js, until the run is over.
// Texts of a run are shown by textContent alone. An update changes what has changed: scroll, sliders and zoom stay.
(() => {
  const EVERY = 5, RARELY = 60, SILENT = 180; // seconds
  const root = document.getElementById("page");
  let data = JSON.parse(document.getElementById("data").textContent);

  // --- elements ---
  const h = (tag, about = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(about)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name in element && name !== "list") element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
    return element;
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const shown = {}; // what each section shows, as JSON
  const section = (element, key, content, build) => {
    const now = JSON.stringify(content);
    if (shown[key] === now) return;
    shown[key] = now;
    element.replaceChildren(...[build(content)].flat().filter(Boolean));
  };

  // --- values as text ---
  const number = (value, digits = 4) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    if (size && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    return Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
  };
  const duration = (seconds) => {
    if (!Number.isFinite(seconds)) return "–";
    const total = Math.max(0, Math.round(seconds));
    const [days, hours, minutes] = [Math.floor(total / 86400), Math.floor(total / 3600) % 24, Math.floor(total / 60) % 60];
    if (days) return `${days} d ${hours} h`;
    if (hours) return `${hours} h ${minutes} min`;
    return minutes ? `${minutes} min ${total % 60} s` : `${total} s`;
  };
  const clock = (seconds) => new Date(seconds * 1000).toLocaleString();
  const bytes = (size) => (size >= 1e9 ? `${number(size / 1e9, 3)} GB` : `${number(size / 1e6, 3)} MB`);
  const text = (value) => (value === null || value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));
  const latest = (values = []) => { for (let i = values.length - 1; i >= 0; i--) if (values[i] !== null) return values[i]; return null; };

  // --- what the data say ---
  const column = (name) => data.metrics[name] || [];
  const steps = () => data.metrics.step;
  const age = () => Date.now() / 1000 - data.written;
  const isRunning = () => data.state === "running";
  const isSilent = () => isRunning() && age() > SILENT;
  const step = () => (isRunning() && data.stage.step) || latest(steps()) || (data.failure && data.failure.step) || 0;
  const pace = () => { // seconds per step of the last logged steps of this start, with their pauses
    const begun = Math.max(0, ...data.events.filter((each) => each.kind === "start" || each.kind === "resume").map((each) => each.time));
    const times = column("time"), last = times.length - 1;
    let first = Math.max(0, last - 40);
    while (first < last && times[first] < begun) first++;
    return last > first ? (times[last] - times[first]) / (steps()[last] - steps()[first]) : NaN;
  };
  const STAGES = { start: "starting", import: "starting", train: "training" };
  const stage = () => {
    if (!isRunning()) return data.state;
    const { stage: name } = data.stage;
    return STAGES[name] || name;
  };

  // --- frame ---
  const place = {};
  for (const name of ["head", "tiles", "failure", "warnings", "curves", "samples", "inputs", "result", "events", "settings", "foot"]) {
    place[name] = h(name === "foot" ? "footer" : "section", { id: name });
  }
  root.replaceChildren(...Object.values(place));

  const header = () => {
    const total = data.total, at = step(), state = isSilent() ? "silent" : data.state;
    const pill = isSilent() ? `no news for ${duration(age())}` : stage();
    const inputs = data.mounts.filter(([name]) => name === "MODEL_DIR" || name === "DATASET_DIR").map(([, uses]) => uses);
    const about = inputs.length ? inputs.join("  ·  ") : text(data.report.pretrained_model_name_or_path);
    const counted = isRunning() && data.stage.total && data.stage.done !== null && data.stage.stage !== "train";
    const part = counted ? data.stage.done / data.stage.total : total ? at / total : 0;
    const of = counted ? `${stage()}: ${data.stage.done.toLocaleString("en")} of ${data.stage.total.toLocaleString("en")}`
      : total ? `step ${at.toLocaleString("en")} of ${Number(total).toLocaleString("en")}` : stage();
    const eta = isRunning() && total ? pace() * (total - at) : NaN;
    const right = data.state === "finished" ? `finished ${data.report.finished ? new Date(data.report.finished).toLocaleString() : ""}`
      : !isRunning() ? `ended ${clock(data.written)}`
      : Number.isFinite(eta) ? `about ${duration(eta)} left, until ${clock(data.written + eta)}` : "";
    document.title = `${isRunning() && total ? `${Math.floor((100 * at) / total)} % ` : ""}${data.title}: ${isSilent() ? "no news" : stage()}`;
    section(place.head, "head", [data.title, about, pill, state, of, right, part], () => [
      h("div", { className: "row spread" }, h("h1", {}, data.title), h("span", { className: `state ${state}`, role: "status" }, pill)),
      h("p", { className: "dim small", style: "overflow-wrap: anywhere" }, about),
      h("div", { className: `bar ${state}` }, h("div", { style: `width: ${Math.min(100, 100 * part)}%` })),
      h("div", { className: "row spread small dim" }, h("span", {}, of), h("span", {}, right)),
    ]);
  };

  const FORMS = { number, bytes, duration };
  const tiles = () => {
    const losses = column("loss"), seconds = pace();
    const all = [
      ["loss, smoothed", losses.length ? number(latest(smooth(losses, smoothing))) : "–"],
      ["time per step", Number.isFinite(seconds) ? (seconds < 1 ? `${number(seconds * 1000, 3)} ms` : `${number(seconds, 3)} s`) : "–"],
      ...data.tiles.map(([title, value, form]) => [title, FORMS[form](value)]),
    ].filter(([, value]) => value !== "–");
    section(place.tiles, "tiles", all, () =>
      h("div", { className: "tiles" }, all.map(([name, value]) => h("div", { className: "card tile" }, h("span", { className: "dim small" }, name), h("b", {}, value)))));
  };

  const failure = () => section(place.failure, "failure", data.failure, (found) => {
    if (!found) return null;
    const problems = found.problems || [];
    const where = [found.node !== null && `node ${found.node}`, found.root_rank !== null && `rank ${found.root_rank}`, found.step !== null && `step ${found.step}`].filter(Boolean);
    const lines = problems.length
      ? problems.map((each) => h("li", {}, `${each.subject}: ${each.found}`, h("br"), h("b", {}, `→ ${each.remedy}`)))
      : (found.evidence || []).map((each) => h("li", {}, text(each)));
    return h("div", { className: "card failure" },
      h("h3", {}, `${found.class}, exit code ${found.code}`), where.length ? h("p", { className: "dim small" }, where.join(", ")) : null,
      h("ul", {}, lines), problems.length ? null : h("p", {}, h("b", {}, `→ ${found.remedy}`)),
      h("p", { className: "dim small" }, `details: failure.json${found.log ? `, ${found.log}` : ""}`));
  });

  const warnings = () => section(place.warnings, "warnings", data.warnings, (found) =>
    found.length ? h("div", { className: "card warnings" }, h("h3", {}, "Warnings at the start"), h("ul", {}, found.map((each) => h("li", {}, each)))) : null);

  // --- curves ---
  const remembered = (() => { try { return JSON.parse(sessionStorage.getItem("sd-report")) || {}; } catch { return {}; } })();
  const remember = (values) => { Object.assign(remembered, values); try { sessionStorage.setItem("sd-report", JSON.stringify(remembered)); } catch { /* forbidden in some frames */ } };
  let smoothing = remembered.smoothing ?? 0.9, axis = remembered.axis ?? "step";
  const smooth = (values, decay) => {
    let sum = 0, weight = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = decay * sum + (1 - decay) * value;
      weight = decay * weight + (1 - decay);
      return sum / weight;
    });
  };
  const CHARTS = [
    { title: "Loss", columns: ["loss", "validation_loss"], wide: true },
    { title: "Learning rate", columns: ["learning_rate"] },
    { title: "Gradient norm", columns: ["grad_norm"] },
    { title: "Speed", columns: ["images_per_second"], unit: "images/s" },
    { title: "Peak memory", columns: ["peak_memory_gib"], unit: "GiB", zero: true },
  ];
  const LEFT_OUT = ["step", "time", "epoch", "skipped_steps"];
  const MARKS = {
    start: ["--good", "start"], resume: ["--good", "resume"], checkpoint: ["--dim", "checkpoint"],
    validation: ["--second", "samples"], skip: ["--bad", "skipped step"], warning: ["--warn", "warning"],
  };
  const charts = new Map();

  const xs = () => {
    if (axis === "step") return steps();
    const first = column("time")[0] || 0;
    return column("time").map((each) => (each - first) / 3600);
  };
  const chartData = (chart) => {
    const lines = chart.columns.map(column).map((values) => (values.length ? values : steps().map(() => null)));
    return chart.columns[0] === "loss" ? [xs(), lines[0], smooth(lines[0], smoothing), lines[1]] : [xs(), ...lines];
  };
  const alone = (plot, at) => plot.data[at].filter((each) => each != null).length === 1; // a line needs two points
  const seriesOf = (chart) => {
    const line = { stroke: css("--accent"), width: 2, spanGaps: true, points: { show: alone, size: 6, fill: css("--accent") } };
    if (chart.columns[0] !== "loss") return chart.columns.map((name) => ({ ...line, label: name }));
    return [
      { ...line, label: "loss", stroke: css("--pale"), width: 1 },
      { ...line, label: "smoothed" },
      { ...line, label: "validation", stroke: css("--second"), points: { show: true, size: 6, fill: css("--second") } },
    ];
  };
  const marks = (plot) => { // events as ticks at the lower edge; starts and resumes as lines
    const { ctx, bbox } = plot, first = column("time")[0] || 0;
    ctx.save();
    for (const event of data.events) {
      const [color] = MARKS[event.kind] || [];
      if (!color || event.step === null) continue;
      const x = plot.valToPos(axis === "step" ? event.step : (event.time - first) / 3600, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      const whole = event.kind === "resume", size = (event.kind === "checkpoint" || event.kind === "validation" ? 7 : 14) * devicePixelRatio;
      ctx.strokeStyle = css(color);
      ctx.lineWidth = 2 * devicePixelRatio;
      if (whole) { ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]); ctx.lineWidth /= 2; }
      ctx.beginPath();
      ctx.moveTo(x, bbox.top + bbox.height);
      ctx.lineTo(x, whole ? bbox.top : bbox.top + bbox.height - size);
      ctx.stroke();
      ctx.setLineDash([]);
    }
    ctx.restore();
  };
  const newPlot = (chart, box, value) => {
    const look = { stroke: css("--dim"), grid: { stroke: css("--grid"), width: 1 }, ticks: { stroke: css("--grid"), width: 1 }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
    const plot = new uPlot({
      width: box.clientWidth, height: chart.wide ? 300 : 200,
      scales: { x: { time: false }, y: { range: (_, low, high) => bounds(low, high, chart.zero) } },
      series: [{}, ...seriesOf(chart)],
      axes: [
        { ...look, label: axis === "step" ? "step" : "hours since the first logged step", labelSize: 18, size: 34, space: 70, values: (_, ticks) => ticks.map((each) => number(each)) },
        { ...look, label: chart.unit || chart.title.toLowerCase(), labelSize: 18, size: 66, values: (_, ticks) => ticks.map((each) => number(each, 3)) },
      ],
      cursor: { sync: { key: "run" }, drag: { x: true, y: false }, points: { size: 7 } },
      hooks: { draw: [marks], setCursor: [(self) => { value.textContent = valueAt(chart, self); }] },
    }, chartData(chart), box);
    return plot;
  };
  const bounds = (low, high, zero) => {
    if (low === null || low === undefined || !Number.isFinite(low)) return [0, 1];
    if (zero) low = 0;
    const span = high - low;
    // Values that differ by rounding only, as those of one step and their mean do, are one value.
    const gap = (span > 1e-9 * Math.abs(high) ? span * 0.07 : 0) || Math.abs(high) * 0.1 || 1;
    return [zero || (low >= 0 && low < gap) ? 0 : low - gap, high + gap];
  };
  const valueAt = (chart, plot) => {
    const index = plot.cursor.idx;
    const at = index === null || index === undefined ? null : steps()[index];
    const parts = chart.columns.map((name) => [name, at === null ? latest(column(name)) : column(name)[index]]).filter(([, each]) => each !== null && each !== undefined);
    const unit = chart.unit ? ` ${chart.unit}` : "";
    return parts.map(([name, each]) => `${chart.columns.length > 1 ? `${name.replace("_", " ")} ` : ""}${number(each)}${unit}`).join("  ·  ") + (at === null ? "" : ` at step ${at.toLocaleString("en")}`);
  };

  const drawCurves = () => {
    for (const each of charts.values()) each.plot.destroy();
    charts.clear();
    const known = CHARTS.flatMap((chart) => chart.columns);
    const others = Object.keys(data.metrics).filter((name) => !known.includes(name) && !LEFT_OUT.includes(name));
    const all = [...CHARTS, ...others.map((name) => ({ title: name.replaceAll("_", " "), columns: [name] }))].filter((chart) => chart.columns.some((name) => column(name).length));
    const grid = h("div", { className: "charts" });
    const legendOf = (chart) => chart.columns[0] !== "loss" ? null : h("div", { className: "legend" },
      [["--pale", "loss"], ["--accent", "smoothed"], ...(column("validation_loss").length ? [["--second", "validation loss"]] : [])]
        .map(([color, name]) => h("span", {}, h("i", { style: `background: var(${color})` }), name)),
      Object.entries(MARKS).filter(([kind]) => data.events.some((event) => event.kind === kind))
        .map(([, [color, name]]) => h("span", {}, h("i", { className: "dot", style: `background: var(${color})` }), name)));
    const controls = h("div", { className: "row small" },
      h("label", {}, "smoothing ", h("input", { type: "range", id: "smoothing", min: 0, max: 0.99, step: 0.01, value: smoothing, style: "width: 8rem; vertical-align: middle",
        oninput: (event) => { smoothing = Number(event.target.value); remember({ smoothing }); curves(); tiles(); } })),
      h("label", {}, "axis ", h("select", { id: "axis", onchange: (event) => { axis = event.target.value; remember({ axis }); drawCurves(); } },
        h("option", { value: "step", selected: axis === "step" }, "steps"), h("option", { value: "time", selected: axis === "time" }, "time"))));
    place.curves.replaceChildren(h("div", { className: "row spread" }, h("h2", {}, "Curves"), controls), grid);
    for (const chart of all) {
      const box = h("div"), value = h("span", { className: "value" });
      grid.append(h("div", { className: `card ${chart.wide ? "wide" : ""}`, "data-chart": chart.title },
        h("div", { className: "row spread" }, h("h3", {}, chart.title), value), legendOf(chart), box));
      const plot = newPlot(chart, box, value);
      value.textContent = valueAt(chart, plot);
      charts.set(chart.title, { chart, plot, box, value });
    }
    if (data.mean_of > 1) place.curves.append(h("p", { className: "dim small" }, `Each point is the mean of ${data.mean_of} logged steps; every one is in run/metrics.jsonl.`));
  };
  const curves = () => {
    if (!steps().length) {
      section(place.curves, "curves", isRunning(), (running) => [h("h2", {}, "Curves"), h("p", { className: "dim" }, running ? "They begin with the first logged step." : "No step was logged.")]);
      return;
    }
    const shape = JSON.stringify([Object.keys(data.metrics), [...new Set(data.events.map((event) => event.kind))], data.mean_of]);
    if (shown.curves !== shape) { shown.curves = shape; drawCurves(); return; }
    for (const { chart, plot, value } of charts.values()) {
      const zoomed = plot.scales.x.min > plot.data[0][0] || plot.scales.x.max < plot.data[0].at(-1);
      plot.setData(chartData(chart), !zoomed);
      if (zoomed) plot.redraw();
      if (plot.cursor.idx === null || plot.cursor.idx === undefined) value.textContent = valueAt(chart, plot);
    }
  };

  // --- samples ---
  const chosen = remembered.chosen || {}; // prompt → index of its step; none: the newest
  let together = remembered.together ?? true;
  const image = (path, version, about) => {
    const address = `${path.split("/").map(encodeURIComponent).join("/")}?v=${version}`;
    return h("a", { href: address, target: "_blank", rel: "noopener" }, h("img", { src: address, alt: about, loading: "lazy",
      onload: (event) => event.target.classList.toggle("tiny", event.target.naturalWidth <= 128) }));
  };
  const imagesOf = (sample, prompt) => h("div", { className: "images" }, (sample.images[prompt] || []).map((name) => image(`${sample.folder}/${name}`, sample.version, `${sample.prompts[prompt]}, step ${sample.step}`)));
  const rows = [];
  const showSample = (row) => {
    const all = data.samples, last = all.length - 1;
    const at = Math.min(chosen[row.prompt] ?? last, last), sample = all[at];
    row.slider.max = last;
    row.slider.value = at;
    row.label.textContent = `step ${sample.step.toLocaleString("en")}`;
    const key = JSON.stringify([sample, all[0].version]);
    if (row.key === key) return;
    row.key = key;
    row.after.replaceChildren(imagesOf(sample, row.prompt));
    row.afterTitle.textContent = sample.step ? `after step ${sample.step.toLocaleString("en")}` : "before training";
  };
  const samples = () => {
    const all = data.samples;
    const shape = all.length ? [all.at(-1).prompts, all[0].step, all[0].version, all.length > 1] : [];
    section(place.samples, "samples", shape, () => {
      rows.length = 0;
      if (!all.length) return null;
      const newest = all.at(-1), hasBefore = all.length > 1;
      const cards = newest.prompts.map((prompt, index) => {
        const row = { prompt: index, after: h("div"), afterTitle: h("span", { className: "dim small" }), label: h("span", { className: "value", style: "min-width: 5.5rem; text-align: right" }) };
        row.slider = h("input", { type: "range", min: 0, max: all.length - 1, step: 1, "aria-label": `step of the samples of prompt ${index}`,
          oninput: (event) => {
            const value = Number(event.target.value), follows = value === data.samples.length - 1;
            for (const each of together ? rows : [row]) { if (follows) delete chosen[each.prompt]; else chosen[each.prompt] = value; showSample(each); }
            remember({ chosen });
          } });
        rows.push(row);
        return h("div", { className: "card prompt" }, h("h3", {}, prompt || "(empty prompt)"),
          hasBefore ? h("div", { className: "row", style: "margin-top: .4rem" }, row.slider, row.label) : null,
          h("div", { className: hasBefore ? "pair" : "pair single" },
            hasBefore ? h("div", {}, h("span", { className: "dim small" }, all[0].step ? `step ${all[0].step}, the first samples` : "before training"), imagesOf(all[0], index)) : null,
            h("div", {}, row.afterTitle, row.after)));
      });
      return [h("div", { className: "row spread" }, h("h2", {}, "Samples"), hasBefore && cards.length > 1 ? h("label", { className: "small" },
        h("input", { type: "checkbox", checked: together, onchange: (event) => { together = event.target.checked; remember({ together }); } }), " move all sliders together") : null),
      h("div", { className: "prompts" }, cards)];
    });
    rows.forEach(showSample);
  };

  const inputs = () => section(place.inputs, "inputs", data.inputs, (found) => found && [
    h("h2", {}, "First training images, as the trainer sees them"),
    h("div", { className: "card sheet" }, image(found.path, found.version, "training images"),
      h("ol", { start: 0, className: "small" }, found.prompts.map((prompt) => h("li", {}, prompt || "(empty prompt)"))))]);

  // --- result, events, settings ---
  const copy = async (button, content, pre) => {
    try { await navigator.clipboard.writeText(content); } catch {
      getSelection().selectAllChildren(pre);
      document.execCommand("copy");
    }
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  };
  const block = ({ title, text: content }) => {
    const pre = h("pre", {}, content);
    const button = h("button", { onclick: () => copy(button, content, pre) }, "copy");
    return h("div", { style: "margin-top: .8rem" }, h("div", { className: "row spread" }, h("h3", {}, title), button), pre);
  };
  const result = () => section(place.result, "result", [data.result, data.usage, data.state], ([folder, usage, state]) =>
    state === "finished" || usage.length ? [h("h2", {}, "Use the result"), h("div", { className: "card" }, h("p", { style: "overflow-wrap: anywhere; margin: 0" }, "It is in ", h("code", {}, folder)), usage.map(block))]
      : state === "running" ? [h("h2", {}, "Use the result"), h("p", { className: "dim", style: "overflow-wrap: anywhere" }, `It will be in ${folder}; how to load it is shown here at the end.`)] : null);

  const folded = (title, ...content) => h("details", { className: "card" }, h("summary", {}, title), ...content);
  const refold = (element, build) => { // what is open stays open
    const open = element.querySelector("details")?.open, scroll = element.querySelector(".scroll")?.scrollTop;
    const built = build();
    if (open) built.open = true;
    requestAnimationFrame(() => { const box = element.querySelector(".scroll"); if (box && scroll) box.scrollTop = scroll; });
    return built;
  };
  const events = () => section(place.events, "events", data.events, (found) => !found.length ? null : [h("h2", {}, "Events"),
    refold(place.events, () => folded(`${found.length.toLocaleString("en")} events, the newest first`, h("div", { className: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, ["time", "step", "event", ""].map((name) => h("th", {}, name)))),
      h("tbody", {}, [...found].reverse().map((event) => h("tr", {}, [clock(event.time), text(event.step), (MARKS[event.kind] || [0, event.kind])[1], event.text].map((each) => h("td", {}, each)))))))))]);

  const settings = () => section(place.settings, "settings", [data.settings, data.about], ([found, about]) => {
    if (!found.length) return null;
    const body = h("tbody");
    let onlyChanged = found.some(([, , source]) => source !== "default"), wanted = "";
    const fill = () => body.replaceChildren(...found
      .filter(([name, value, source]) => (!onlyChanged || source !== "default") && `${name} ${text(value)} ${source}`.toLowerCase().includes(wanted))
      .map((row) => h("tr", {}, row.map((each) => h("td", {}, text(each))))));
    fill();
    return [h("h2", {}, "Settings"), folded(`${found.length} settings, with their sources`,
      h("div", { className: "row small", style: "margin-top: .6rem" },
        h("input", { type: "search", placeholder: "filter", "aria-label": "filter", oninput: (event) => { wanted = event.target.value.toLowerCase(); fill(); } }),
        h("label", {}, h("input", { type: "checkbox", checked: onlyChanged, onchange: (event) => { onlyChanged = event.target.checked; fill(); } }), " only those that were set")),
      h("div", { className: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, ["setting", "value", "source"].map((name) => h("th", {}, name)))), body)),
      about.length ? h("div", { className: "small dim", style: "margin-top: .8rem" }, about.map((line) => h("p", {}, line))) : null)];
  });

  let unreachable = 0;
  const foot = () => {
    const how = !isRunning() ? "" : unreachable > 2 ? " Its data file cannot be read from here; the page loads itself again every minute." : " It refreshes itself.";
    section(place.foot, "foot", [data.written, how], () => h("p", {}, `As of ${clock(data.written)}.${how}`));
  };

  const update = () => { for (const part of [header, tiles, failure, warnings, curves, samples, inputs, result, events, settings, foot]) part(); };

  // --- refreshing ---
  window.sdReport = (newer) => {
    unreachable = 0;
    if (newer.written < data.written) return;
    data = newer;
    update();
  };
  let timer = 0;
  const next = () => {
    if (data.state === "finished") return;
    timer = setTimeout(load, 1000 * (isRunning() && unreachable < 3 ? EVERY : RARELY));
  };
  const load = () => {
    const script = document.createElement("script");
    script.src = `run/report_data.js?t=${Date.now()}`;
    script.onload = () => { script.remove(); header(); foot(); next(); };
    script.onerror = () => {
      script.remove();
      if (++unreachable > 3 && isRunning()) { location.reload(); return; }
      header(); foot(); next();
    };
    document.head.append(script);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden && data.state !== "finished") { clearTimeout(timer); load(); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (charts.size) drawCurves(); });
  new ResizeObserver(() => { for (const { plot, box } of charts.values()) if (box.clientWidth && box.clientWidth !== plot.width) plot.setSize({ width: box.clientWidth, height: plot.height }); }).observe(root);

  update();
  next();
})();
