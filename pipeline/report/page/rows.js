// The table of rows: columns, not one object a row, so that 100,000 of them take little.
const browse = (packed, data, kit) => {
  const { add, table, shown, count, main } = kit, told = data.shown, page = 50;
  const coded = ["error_kind", "model", "target", "step"];
  const join = (into, block) => {
    for (const [name, column] of Object.entries(block)) {
      let row = 0;
      const values = coded.includes(name) ? column.at.map((n) => column.of[n]) : name === "row" ? column.map((step) => row += step) : column;
      const whole = into[name] ??= [];
      for (const value of values) whole.push(value);
    }
  };
  const r = { row: [], key: [] }, inputs = { row: [], input: [] }, calls = { row: [] }, into = { rows: r, inputs, calls };
  for (const line of packed.split("\n")) if (line) for (const [kind, block] of Object.entries(JSON.parse(line))) join(into[kind], block);
  const place = new Map(r.row.map((row, n) => [row, n]));
  const input = new Array(r.row.length);
  inputs.row.forEach((row, n) => { input[place.get(row)] = inputs.input[n]; });
  const of = new Map();
  calls.row.forEach((row, n) => { of.has(row) ? of.get(row).push(n) : of.set(row, [n]); });
  const order = r.row.map((_, n) => n).sort((a, b) => r.row[a] - r.row[b]);
  const status = (n) => data.statuses[r.status[n]] + (r.error_kind[n] && r.error_kind[n] !== data.statuses[r.status[n]] ? `: ${r.error_kind[n]}` : "");

  const notes = [];
  if (told.rows < told.of) notes.push(`${count(told.rows)} of ${count(told.of)} rows are here, evenly spread, and those that failed` +
    (told.failed_left_out ? ` but for ${count(told.failed_left_out)} of these` : "") + "; the output table has all.");
  const cut = [["answers", told.cut.rows], ["inputs", told.cut.inputs], ["answers to calls", told.cut.calls]].filter(([, n]) => n);
  if (cut.length) notes.push(`Cut after ${count(told.chars)} characters so that this file stays small: ` +
    `${cut.map(([what, n]) => `${count(n)} ${what}`).join(", ")}. \`pipeline show\` has each row whole.`);
  if (told.several < told.of_several) notes.push(`Of ${count(told.of_several)} rows with several calls those of ${count(told.several)} are here.`);
  if (told.no_inputs) notes.push(`The input cannot be shown beside its answer: ${told.no_inputs}.`);
  notes.forEach((note) => add(main, "p", note, "dim"));

  const bar = add(main, "p", undefined, "bar");
  const search = add(bar, "input");
  search.type = "search"; search.id = "search"; search.placeholder = "search"; search.ariaLabel = "search rows";
  const choice = (name, options) => {
    const made = add(bar, "select");
    made.ariaLabel = name;
    options.forEach(([value, text]) => { add(made, "option", text).value = value; });
    made.onchange = () => { at = 0; show(); };
    return made;
  };
  const kinds = [...new Set(order.map(status))].sort();
  const only = choice("outcome", [["", "every outcome"], ...kinds.map((kind) => [kind, kind])]);
  const by = choice("order", [["", "in their order"], ["latency_s", "slowest first"], ["cost_usd", "dearest first"],
    ["input_tokens", "longest prompts first"], ["output_tokens", "longest answers first"]]);
  const back = add(bar, "button", "earlier"), on = add(bar, "button", "later"), where = add(bar, "span", "", "dim");
  where.role = "status";
  const body = add(main, "div");
  let at = 0, words = null;
  const haystack = () => words ??= r.row.map((row, n) => [r.key[n], status(n), r.error[n], input[n], r.answer[n],
    ...(of.get(row) ?? []).map((call) => calls.answer[call])].filter(Boolean).join("\n").toLowerCase());
  const text = (to, value, none) => {
    if (value === null || value === undefined) return add(to, "span", none, "dim");
    const whole = !value.endsWith("\0"), made = add(to, "pre", whole ? value : value.slice(0, -1));
    made.dir = "auto";
    if (!whole) add(made, "span", " … cut here", "dim");
    return made;
  };
  const ofCall = (n) => {
    const several = calls.chunks[n] > 1 ? `, ${calls.chunk[n] + 1} of ${calls.chunks[n]}` : "";
    return calls.step[n] + (calls.level[n] ? `, level ${calls.level[n]}` : "") + several + (calls.late[n] ? ", late" : "");
  };
  const provenance = (to, row) => {
    const made = of.get(row);
    if (!made) return;
    const more = add(to, "details");
    add(more, "summary", `${made.length} calls led to it`);
    const lines = table(more, ["call", "status", "answer"], [], "calls");
    made.sort((a, b) => calls.level[a] - calls.level[b] || calls.chunk[a] - calls.chunk[b]).forEach((n) => {
      const line = add(lines, "tr");
      add(line, "td", ofCall(n));
      add(line, "td", data.statuses[calls.status[n]]);
      text(add(line, "td"), calls.answer[n], "the row's answer");
    });
  };
  const show = () => {
    const wanted = search.value.toLowerCase();
    let found = order;
    if (wanted) found = found.filter((n) => haystack()[n].includes(wanted));
    if (only.value) found = found.filter((n) => status(n) === only.value);
    if (by.value) found = [...found].sort((a, b) => (r[by.value][b] ?? -1) - (r[by.value][a] ?? -1));
    at = Math.max(0, Math.min(at, Math.floor((found.length - 1) / page) * page));
    const last = Math.min(found.length, at + page);
    where.textContent = found.length ? ` ${count(at + 1)}–${count(last)} of ${count(found.length)} rows` : " 0 rows";
    back.disabled = !at;
    on.disabled = last >= found.length;
    body.replaceChildren();
    const lines = table(body, ["row", "outcome", ...(told.has_inputs ? ["input"] : []), "answer", "in", "out", "USD", "s"], [], "rows ids");
    found.slice(at, last).forEach((n) => {
      const line = add(lines, "tr");
      add(line, "td", r.key[n]);
      add(line, "td", status(n));
      const texts = (name) => {
        const made = add(line, "td", undefined, "text");
        made.dataset.name = name;
        return made;
      };
      if (told.has_inputs) text(texts("input"), input[n], "");
      const cell = texts("answer");
      text(cell, r.answer[n], "no answer");
      if (r.error[n]) add(cell, "p", r.error[n], "dim");
      provenance(cell, r.row[n]);
      const made = (r.output_tokens[n] ?? 0) + (r.thinking_tokens[n] ?? 0);
      [["in", r.input_tokens[n]], ["out", made], ["USD", r.cost_usd[n]], ["s", r.latency_s[n]]].forEach(([name, v]) => {
        add(line, "td", shown(v), "n").dataset.name = name;
      });
    });
  };
  try { search.value = decodeURIComponent(location.hash.slice(1)); } catch { /* no words: nothing is searched for */ }
  let soon = 0;
  search.oninput = () => { clearTimeout(soon); soon = setTimeout(() => { at = 0; show(); }, r.row.length > 5000 ? 250 : 0); };
  back.onclick = () => { at -= page; show(); };
  on.onclick = () => { at += page; show(); };
  show();
};
