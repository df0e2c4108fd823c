(async () => {
  const unpacked = async (id) => {
    const element = document.getElementById(id), text = atob(element.textContent), bytes = new Uint8Array(text.length);
    for (let n = 0; n < text.length; n++) bytes[n] = text.charCodeAt(n);
    element.remove();
    return bytes.length ? new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text() : "";
  };
  const data = JSON.parse(await unpacked("data"));
  const main = document.getElementById("main");
  // What would turn or hide text around it is written out.
  const plain = (value) => String(value ?? "").replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
    (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
  const add = (to, tag, text, kind) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = plain(text);
    if (kind) made.className = kind;
    to.append(made);
    return made;
  };
  const count = (value) => value.toLocaleString("en");
  const shown = (value) => typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: 6 }) : value;
  const duration = (seconds) => seconds < 60 ? `${shown(seconds)} s` : [[seconds / 3600, "h"], [seconds / 60 % 60, "min"], [seconds % 60, "s"]]
    .filter(([value, unit]) => Math.floor(value) || unit === "s").map(([value, unit]) => `${Math.floor(value)} ${unit}`).join(" ");
  const table = (to, heads, lines, kind) => {
    const made = add(add(to, "div", undefined, "scroll"), "table", undefined, kind);
    const head = add(add(made, "thead"), "tr");
    heads.forEach((name) => { add(head, "th", name).scope = "col"; });
    const body = add(made, "tbody");
    lines.forEach((line) => {
      const row = add(body, "tr");
      line.forEach((cell) => add(row, "td", shown(cell), typeof cell === "number" ? "n" : ""));
    });
    return body;
  };
  const s = data.summary;
  document.title = plain((s.rehearsal ? "Rehearsal: " : "") + s.run);
  main.replaceChildren();
  if (s.rehearsal) add(main, "p", "A rehearsal: the emulator answered. Nothing here is a result.", "label");
  add(main, "h1", `${s.run}: ${s.status}`);
  const dated = (at) => new Date(at).toLocaleString("sv", { dateStyle: "short", timeStyle: "long" });
  add(main, "p", `${data.model}${s.generation > 1 ? `; generation ${s.generation}` : ""}; as it was at ${dated(data.made_at)}${s.status === "running" ? ", while it went on" : ""}; times are of your time zone`, "dim");
  if (data.reason) add(main, "pre", data.reason, "sum");
  table(main, ["outcome", "rows"], [...data.statuses.map((name) => [name, s[name]]), ["without an outcome", data.pending], ["all", s.rows]]);
  if (data.causes.length) table(main, ["not ok", "rows", "USD", "what happened", ...(data.text ? ["what helps"] : [])],
    data.causes.map((c) => [c.cause, c.rows, c.cost_usd ?? "?", c.what, ...(data.text ? [c.cure + (c.cure_usd ? ` (about $${shown(c.cure_usd)})` : "")] : [])]));
  const cost = s.cost_usd === null ? "cost unknown" : `$${shown(s.cost_usd)}`;
  add(main, "p", `${cost}; ${count(s.calls)} calls; ${count(s.input_tokens)} tokens in, ${count(s.output_tokens + s.thinking_tokens)} out; ${duration(s.seconds)}`, "sum");
  const charts = runCharts(data, { add, shown, main });
  add(main, "h2", "Over time");
  if (data.series) {
    if (s.lanes.batch) add(main, "p", `The ${count(s.lanes.batch.calls)} answers of batches come at once: they are in the sums so far, and in no pace.`, "dim");
    add(main, "p", "Drag across a chart to see a part of the time in all of them; a double click shows all again.", "dim press");
    add(main, "p", "Lines upright: S and E a session begins and ends, Z it sleeps, B a batch, ! something went wrong, ✎ an edit.", "dim");
    charts.overTime();
    if (!Object.keys(data.series.troubles).length && !data.causes.length && s.attempts <= s.calls) add(main, "p", "No request was refused, and none failed.", "dim");
  } else add(main, "p", s.kept ? `No call was made: ${count(s.kept)} answers are kept from earlier generations.` : "No call was made yet.");
  const bound = Object.entries(s.bound_s).sort(([, a], [, b]) => b - a);
  if (bound.length) {
    const all = bound.reduce((sum, [, seconds]) => sum + seconds, 0);
    add(main, "h2", "Why it was not faster");
    table(main, ["waited for", "seconds", "%"], bound.map(([name, seconds]) => [name, seconds, Math.round(100 * seconds / all)]));
    add(main, "p", data.means.bound_s.replace(/^[^:]*: /, ""), "dim");
  }
  if (data.marks.length) {
    add(main, "h2", "Events");
    table(main, ["", "when", "what", ""], data.marks.map((mark) => [charts.letter(mark.kind), dated(mark.at * 1000), mark.kind, mark.text]));
  }
  if (s.accuracy) {
    add(main, "h2", "Against the estimate");
    const steps = Object.entries(s.accuracy).filter(([, v]) => v && v.calls);
    const pair = (v) => v.map((n) => n === null ? "?" : shown(n)).join(" → ");
    table(main, ["step", "calls", "tokens in", "tokens out", "USD"],
      steps.map(([name, v]) => [name, pair(v.calls), pair(v.input_tokens), pair(v.output_tokens), pair(v.cost_usd)]));
  }
  if (data.groups.length) {
    add(main, "h2", "By model, target and lane");
    table(main, ["model", "target", "lane", "requests", "USD"], data.groups);
  }
  if (data.lengths.in) {
    add(main, "h2", "Lengths");
    charts.lengths();
  }
  addEventListener("resize", charts.fit);
  const extreme = (title, rows) => {
    add(main, "h2", title);
    const cells = (r) => [r.status, r.latency_s, r.cost_usd, r.input_tokens, r.output_tokens, r.thinking_tokens];
    const heads = ["status", "seconds", "USD", "tokens in", "tokens out", "thought"];
    table(main, data.text ? ["row", ...heads] : heads, rows.map((r) => data.text ? [r.key, ...cells(r)] : cells(r)), data.text ? "ids" : "");
  };
  if (data.slowest[0]?.latency_s) extreme("The slowest rows", data.slowest);
  if (data.dearest[0]?.cost_usd) extreme("The dearest rows", data.dearest);
  if (data.text) {
    add(main, "h2", "Rows and answers");
    browse(await unpacked("rows"), data, { add, table, shown, count, main });
  }
  add(main, "h2", "In numbers");
  table(main, ["", "", ""], Object.entries(s).filter(([, v]) => typeof v === "number" || typeof v === "string").map(([name, v]) => [name, v, data.means[name]]), "numbers");
  if (data.text) {
    add(main, "h2", "The job as run");
    add(main, "pre", JSON.stringify(data.job, null, 2));
  }
})();
