"use strict";
(async () => {
  const packed = Uint8Array.from(atob(document.getElementById("data").textContent), (c) => c.charCodeAt(0));
  const data = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
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
  const shown = (value) => typeof value === "number" ? value.toLocaleString("en", { maximumFractionDigits: 6 }) : value;
  const table = (to, heads, lines) => {
    const made = add(add(to, "div", undefined, "scroll"), "table");
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
  document.title = plain(s.run);
  add(main, "h1", `${s.run}: ${s.status}`);
  if (s.rehearsal) add(main, "p", "A rehearsal: the emulator answered. Nothing here is a result.", "label");
  add(main, "p", `${data.model}; as it was at ${data.made_at}; charts in your time zone`, "dim");
  const outcomes = data.statuses.map((name) => [name, s[name]]);
  table(main, ["outcome", "rows"], [...outcomes, ["without an outcome", data.pending], ["all", s.rows]]);
  add(main, "h2", "In numbers");
  table(main, ["", ""], Object.entries(s).filter(([, v]) => typeof v === "number" || typeof v === "string"));
  if (s.accuracy) {
    add(main, "h2", "Against the estimate");
    const steps = Object.entries(s.accuracy).filter(([, v]) => v && v.calls);
    const pair = (v) => v.map((n) => n === null ? "?" : shown(n)).join(" → ");
    table(main, ["step", "calls", "tokens in", "tokens out", "USD"],
      steps.map(([name, v]) => [name, pair(v.calls), pair(v.input_tokens), pair(v.output_tokens), pair(v.cost_usd)]));
  }
  const t = data.series;
  if (!t) add(main, "p", "No call was made yet.");
  else {
    const times = t.calls.map((_, n) => t.from + n * t.width_s);
    const ink = "#7a7a7a";  // legible on light, dark and paper: what is drawn does not change with them
    const colours = ["#0072b2", "#d55e00"];  // Okabe and Ito; the second line is dashed too
    const charts = [];
    const chart = (title, lines) => {
      add(main, "h2", title);
      const axis = { stroke: ink, grid: { stroke: "#8884" }, size: 95 };
      charts.push(new uPlot({
        width: Math.max(280, main.clientWidth), height: 220, axes: [{ stroke: ink, grid: { stroke: "#8884" } }, axis],
        series: [{}, ...lines.map(([label, values], n) => ({ label, stroke: colours[n], width: 2, dash: n ? [6, 4] : undefined,
          points: { show: times.length < 60 || values.includes(null), size: 4 } }))],
      }, [times, ...lines.map(([, values]) => values)], add(main, "div")));
    };
    const perMinute = (values) => values.map((v) => v * 60 / t.width_s);
    const sum = (values) => { let total = 0; return values.map((v) => total += v); };
    chart("Calls per minute", [["calls", perMinute(t.calls)]]);
    chart("Tokens per minute", [["in", perMinute(t.input)], ["out", perMinute(t.output)]]);
    chart("Cost so far, USD", [["USD", sum(t.usd)]]);
    chart("Latency, seconds", [["median", t.p50], ["p95", t.p95]]);
    chart("Refusals for quota, and calls that failed", [["refused", t.refused], ["failed", t.failed]]);
    addEventListener("resize", () => charts.forEach((c) => c.setSize({ width: Math.max(280, main.clientWidth), height: 220 })));
    add(main, "h2", "By model, target and lane");
    table(main, ["model", "target", "lane", "calls", "USD"], data.groups);
  }
  const extreme = (title, rows) => {
    add(main, "h2", title);
    const cells = (r) => [r.status, r.latency_s, r.cost_usd, r.input_tokens, r.output_tokens];
    const heads = ["status", "seconds", "USD", "tokens in", "tokens out"];
    table(main, data.text ? ["row", ...heads] : heads, rows.map((r) => data.text ? [r.key, ...cells(r)] : cells(r)));
  };
  extreme("The slowest rows", data.slowest);
  extreme("The dearest rows", data.dearest);
  if (data.text) {
    const pieces = Map.groupBy(data.pieces, (p) => p.row);
    add(main, "h2", "Rows and answers");
    const done = data.statuses.reduce((n, name) => n + s[name], 0);
    add(main, "p", data.rows.length < done ? `${data.rows.length} of ${done} rows, evenly spread; ` +
      "the output table has all. Prompts are not kept by a run." : "Prompts are not kept by a run.", "dim");
    const search = add(main, "input");
    search.type = "search"; search.id = "search"; search.placeholder = "search"; search.ariaLabel = "search rows";
    const back = add(main, "button", "earlier"), on = add(main, "button", "later"), count = add(main, "span", "", "dim");
    const place = add(main, "div");
    let at = 0;
    try { search.value = decodeURIComponent(location.hash.slice(1)); } catch { /* no words: nothing is searched for */ }
    const show = () => {
      const wanted = search.value.toLowerCase();
      const found = data.rows.filter((r) => [r.key, r.status, r.error, r.response].some((v) => (v ?? "").toLowerCase().includes(wanted)));
      at = Math.max(0, Math.min(at, found.length - 1));
      count.textContent = ` ${found.length} rows`;
      place.replaceChildren();
      const body = table(place, ["row", "status", "answer", "tokens in", "tokens out", "USD"], []);
      found.slice(at, at + 50).forEach((r) => {
        const line = add(body, "tr");
        add(line, "td", r.key); add(line, "td", r.error_kind ? `${r.status}: ${r.error_kind}` : r.status);
        const cell = add(line, "td");
        const text = r.response ?? r.error ?? "";
        add(cell, "pre", text.length > data.cut_at ? text.slice(0, data.cut_at) + " … (cut here)" : text);
        const parts = pieces.get(r.row);
        if (parts) {
          const more = add(cell, "details");
          add(more, "summary", `${parts.length} calls: pieces, then what was made of them`);
          table(more, ["step", "level", "piece", "status", "answer, its beginning"], parts.map((p) =>
            [p.step, p.level, p.chunk, p.status, p.text ?? "(the row's answer)"]));
        }
        [r.input_tokens, r.output_tokens, r.cost_usd].forEach((v) => add(line, "td", shown(v), "n"));
      });
    };
    search.oninput = () => { at = 0; show(); };
    back.onclick = () => { at -= 50; show(); };
    on.onclick = () => { at += 50; show(); };
    show();
    add(main, "h2", "The job as run");
    add(main, "pre", JSON.stringify(data.job, null, 2));
  }
})();
