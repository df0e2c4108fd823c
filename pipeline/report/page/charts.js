"use strict";
// The charts of a run. Colours are Okabe and Ito's; what they tell apart differs in dashes, letters or place as well.
const runCharts = (data, kit) => {
  const { add, shown } = kit;
  const t = data.series;
  const ink = "#7a7a7a";  // legible on light, dark and paper: what is drawn does not change with them
  const grid = { stroke: "#8884", width: 1 };
  const colours = ["#0072b2", "#d55e00", "#009e73"];
  const letters = { start: "S", end: "E", day: "Z", wait: "Z", outage: "!", refused: "!", alert: "!", batch: "B", edit: "✎" };
  const drawn = data.marks.filter((mark) => letters[mark.kind]);
  // Times of day in 24 hours, the day beside the first and where it changes.
  const day = "\n{YYYY}-{MM}-{DD}", within = [null, "\n{MM}-{DD}", null, null, null, 1];
  const times = [[86400 * 28, "{YYYY}-{MM}", null, null, null, null, null, null, 1], [86400, "{MM}-{DD}", "\n{YYYY}", null, null, null, null, null, 1],
    [3600, "{HH}:00", day, ...within], [60, "{HH}:{mm}", day, ...within],
    [1, ":{ss}", "\n{MM}-{DD} {HH}:{mm}", null, "\n{MM}-{DD} {HH}:{mm}", null, "\n{HH}:{mm}", null, 1]];
  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
  const made = [];
  let place = null;
  const width = () => Math.max(260, Math.min(540, kit.main.clientWidth));
  const lettered = (u) => {
    const { ctx, bbox } = u, density = devicePixelRatio;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = ink;
    ctx.lineWidth = density;
    ctx.setLineDash([2 * density, 4 * density]);
    ctx.font = `${11 * density}px system-ui, sans-serif`;
    ctx.textAlign = "center";
    let free = -Infinity;  // letters that would lie on each other are left out: their lines are there
    drawn.forEach((mark) => {
      const x = Math.round(u.valToPos(mark.at, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) return;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      if (x < free) return;
      ctx.fillText(letters[mark.kind], x, bbox.top - 3 * density);
      free = x + 12 * density;
    });
    ctx.restore();
  };
  const chart = (title, note, series, data_, options) => {
    const box = add(place, "figure");
    add(box, "figcaption", title);
    if (note) add(box, "p", note, "dim");
    const canvas = add(box, "div");
    canvas.role = "img";
    canvas.ariaLabel = title;
    const value = (_, v) => v === null || v === undefined ? "–" : shown(v);
    made.push(new uPlot({
      width: width(), height: 200, padding: [14, 24, 0, 0],
      axes: [{ stroke: ink, grid, ticks: grid, ...options.x },
        { stroke: ink, grid, ticks: grid, size: 66, values: (_, found) => found.map((v) => compact.format(v)) }],
      legend: { markers: { dash: (u, n) => u.series[n].dash ? "dashed" : "solid" } },
      scales: options.scales, hooks: options.hooks, cursor: options.cursor, bands: options.bands,
      series: [options.first ?? {}, ...series.map((one) => ({ value, ...one }))],
    }, data_, canvas));
  };
  const line = (label, number, more) => ({ label, stroke: colours[number], width: 2, dash: number ? [7, 4] : undefined,
    points: { show: false }, ...more });
  const quota = (label) => ({ label, stroke: ink, width: 1.5, dash: [2, 3], points: { show: false }, paths: uPlot.paths.stepped({ align: -1 }) });
  // All of the run, also where nothing came back; once somebody chose a part, that part.
  const spread = (_, low, high) => low === t.at[0] && high === t.at.at(-1) ? [Math.min(low, t.since), Math.max(high, t.until)] : [low, high];
  const inTime = (title, note, series, values, bands) => chart(title, note, series, [t.at, ...values], {
    scales: { x: { time: true, range: spread }, y: { range: (_, low, high) => [0, high > 0 ? 1.1 * high : 1] } },
    x: { values: times }, first: { label: "time", value: "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}" },
    hooks: { draw: [lettered] }, cursor: { sync: { key: "time" } }, bands,
  });
  const band = (name) => data.estimate[name];
  // Cost or tokens so far, with the range in which the estimate has the end.
  const soFar = (title, note, lines) => {
    const series = [], values = [], bands = [];
    lines.forEach(([label, found, range], number) => {
      series.push(line(label, number));
      values.push(found);
      if (!range) return;
      const flat = (v) => t.at.map(() => v);
      const edge = { stroke: colours[number] + "88", width: 1, points: { show: false } };
      series.push({ ...edge, label: `${label}, estimate`, dash: [2, 3] });
      values.push(flat(range[1]));
      if (range[0] === range[2]) return;
      series.push({ ...edge, label: `${label}, most` }, { ...edge, label: `${label}, least` });
      values.push(flat(range[2]), flat(range[0]));
      bands.push({ series: [series.length - 1, series.length], fill: colours[number] + "28" });
    });
    inTime(title, note, series, values, bands);
  };
  const counts = (title, lines) => inTime(title, `in ${t.width_s} s`, lines.map(([label], number) => ({ label, stroke: colours[number],
    fill: colours[number] + (number ? "30" : ""), points: { show: false }, paths: uPlot.paths.bars({ size: [0.8, 12, 4], align: [-1, 1, 0][lines.length > 1 ? number : 2] }) })),
    lines.map(([, found]) => found.map((v) => v || null)));
  const lengths = (title, classes) => {
    const names = classes.map(([edge], n) => n + 1 < classes.length && classes[n + 1][0] > edge + 1 ? `${edge}–${classes[n + 1][0] - 1}` : `${edge}`);
    chart(title, "requests by tokens", [{ label: "requests", stroke: colours[0], fill: colours[0] + "aa", paths: uPlot.paths.bars({ size: [0.9, 60] }), points: { show: false } }],
      [classes.map((_, n) => n), classes.map(([, count]) => count)], {
        scales: { x: { time: false, range: [-0.6, classes.length - 0.4] }, y: { range: (_, low, high) => [0, high * 1.1] } },
        first: { label: "tokens", value: (_, n) => names[n] ?? "–" },
        x: { splits: () => classes.map((_, n) => n).filter((n) => n % Math.ceil(classes.length / 8) === 0), values: (_, at) => at.map((n) => compact.format(classes[n][0])) },
      });
  };
  const rate = t && (t.width_s <= 60 ? "in the minute before" : `a minute, mean of ${t.width_s / 60}`);
  return {
    overTime: () => {
      place = add(kit.main, "div", undefined, "charts");
      const limit = (values, label) => values.some((v) => v !== null) ? [[quota(label), values]] : [];
      const rated = (title, lines, limits) => inTime(title, rate, [...lines.map(([label], n) => line(label, n)), ...limits.map(([one]) => one)],
        [...lines.map(([, found]) => found), ...limits.map(([, found]) => found)]);
      rated("Calls", [["calls", t.calls]], limit(t.rpm, "quota"));
      rated("Tokens in", [["tokens in", t.live_input]], limit(t.tpm, "quota"));
      rated("Tokens out", [["tokens out", t.live_output]], []);
      soFar("Tokens so far", "bands: the estimate", [["in", t.input, band("input_tokens")], ["out", t.output, band("output_tokens")]]);
      if (t.usd.at(-1)) soFar("Cost so far, USD", band("cost_usd") ? "band: the estimate" : "", [["USD", t.usd, band("cost_usd")]]);
      if (t.p50.some((v) => v !== null)) inTime("Latency, seconds", `of calls that came back ${rate}`,
        [["median", t.p50], ["95 % are below", t.p95]].map(([label], n) => line(label, n, { points: { show: t.width_s >= 60, size: 4, fill: colours[n] } })), [t.p50, t.p95]);
      const { quota: refused, server, ...others } = t.troubles;
      if (refused) counts("Refused for quota (429)", [["refused", refused]]);
      const other = Object.values(others);
      const failed = [...(server ? [["the service's fault (5xx)", server]] : []),
        ...(other.length ? [["others: network, time-outs …", other[0].map((_, n) => other.reduce((sum, one) => sum + one[n], 0))]] : [])];
      if (failed.length) counts("Requests that failed otherwise", failed);
    },
    lengths: () => {
      place = add(kit.main, "div", undefined, "charts");
      if (data.lengths.in) lengths("Length of prompts", data.lengths.in);
      if (data.lengths.out) lengths("Length of answers, with thinking", data.lengths.out);
    },
    fit: () => made.forEach((one) => one.setSize({ width: width(), height: 200 })),
    letter: (kind) => letters[kind] ?? "",
  };
};
