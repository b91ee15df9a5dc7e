/* "Your case": the arithmetic of `tinygemm advise` in the browser, from coefficients that the page carries.
   TinyGemm.advice is pure; what follows it draws a form and its answer. Nothing is fetched. */
"use strict";
const TinyGemm = (() => {
  const FP16 = "fp16-cublas", INT4 = "int4", HEAD = "lm_head";
  const OVERLAPPING = ["serial", "memory", "unpack", "multiply"];
  const sum = (values) => values.reduce((total, value) => total + value, 0);

  // --- a model and how GPUs share it ---------------------------------------------------------------------------

  const sideOf = (side, tp) =>
    typeof side === "number" ? side : sum(side.map(([count, width]) => Math.max(Math.floor(count / tp), 1) * width));
  const groupFor = (rules, K, largest) => rules.group_sizes.find((size) => size <= largest && K % size === 0) ?? null;
  const divides = (side, tp) =>
    typeof side === "number" ||
    side.every(([count, , repeated]) => count % tp === 0 || (repeated && tp % count === 0));
  const degreesOf = (rules, model) =>
    rules.degrees.filter((tp) => model.weights.every((each) => divides(each.K, tp) && divides(each.N, tp)));

  function projections(rules, model, tp, M, group) {
    return model.weights.map((weight) => {
      const shared = Math.min(weight.experts, M * weight.used), K = sideOf(weight.K, tp);
      return {
        layer: weight.layer, K, N: sideOf(weight.N, tp), group_size: groupFor(rules, K, group),
        calls: weight.layers * shared, tokens: Math.ceil((M * weight.used) / shared),
      };
    });
  }

  // --- the latency model: see tinygemm/report/predict/terms.py and projection.py -------------------------------

  const usable = (rules, gpu) => gpu.dram_gb_s * (1 - rules.ecc_share * (gpu.inline_ecc ? 1 : 0));

  function scaled(data, run, side, key, knobs) {
    if (key === run.gpu) return side;
    const knob = (name) => knobs[name] ?? 1, gpu = data.gpus[key], base = data.gpus[run.gpu];
    const slower = run.clock_mhz / (gpu.boost_clock_mhz * knob("clock"));
    const waits = side.overlaps && base.major >= 9 && gpu.major < 9 ? run.overlap_us * slower * knob("dependent") : 0;
    return {
      ...side,
      start_us: side.start_us * slower * knob("start") + waits,
      token_us: side.token_us * slower * knob("start"),
      serial_ns: side.serial_ns * slower * knob("serial"),
      weight_ps: side.weight_ps * slower * knob("work"),
      tile_ps: side.tile_ps * slower * knob("work"),
      efficiency: side.efficiency * knob("bandwidth") * knob("ecc"),
      host_us: side.host_us * knob("host"),
    };
  }

  function parts(rules, side, gpu, { M, K, N, bits }) {
    let tail = 1, walked = (K ** -rules.sharpness + side.longest_k ** -rules.sharpness) ** (-1 / rules.sharpness);
    if (side.cut) {
      const programs = Math.ceil(N / side.cut[0]) * side.cut[1];
      walked = K / side.cut[1];
      tail = (Math.ceil(programs / gpu.sm_count) * gpu.sm_count) / programs;
    }
    const tiles = side.block_m ? Math.ceil(M / side.block_m) : M / 8;
    return {
      start: side.start_us, token: side.token_us * M, serial: side.serial_ns * 1e-3 * walked,
      memory: ((K * N * bits) / 8 + 2 * M * (K + N)) / (side.efficiency * usable(rules, gpu) * 1e3),
      unpack: (side.weight_ps * 1e-6 * K * N * tail) / gpu.sm_count,
      multiply: (side.tile_ps * tiles * 1e-6 * K * N * tail) / gpu.sm_count,
    };
  }

  function device(rules, side, gpu, problem) {
    const of = parts(rules, side, gpu, problem), longest = Math.max(...OVERLAPPING.map((name) => of[name]));
    const together = sum(OVERLAPPING.map((name) => (of[name] / longest) ** side.overlap)) ** (1 / side.overlap);
    return of.start + of.token + longest * together;
  }

  function latency(data, run, name, key, problem, launch, knobs = {}) {
    const rules = data.rules, side = scaled(data, run, run.backends[name], key, knobs);
    const time = device(rules, side, data.gpus[key], { ...problem, bits: bitsAt(side.bits, problem) });
    if (launch !== "eager") return time;
    return (side.host_us ** rules.sharpness + (time + side.gap_us) ** rules.sharpness) ** (1 / rules.sharpness);
  }

  const bitsAt = (bits, { K, group_size }) => (bits >= 16 ? bits : 4 + ((bits - 4) * 128) / (group_size ?? K));

  // measured where the run has the very case, else predicted
  function known(data, run, name, key, problem, launch) {
    const own = key === run.gpu && (problem.group_size === 128 || name.startsWith("fp16"));
    const found = own ? run.single[`${name} ${launch} ${problem.M} ${problem.K} ${problem.N}`] : undefined;
    return { us: found ?? latency(data, run, name, key, problem, launch), measured: found !== undefined };
  }

  // the predicted ratio of two backends and its band: an assumption moves both sides at once
  function ratioBand(data, run, above, below, key, problem, launch) {
    const time = (name, knobs) => latency(data, run, name, key, problem, launch, knobs);
    const [top, bottom] = [time(above), time(below)], ratio = top / bottom;
    const moves = Object.entries(data.assumptions[run.gpu][key]).map(([knob, ends]) =>
      ends.map((end) => Math.log(time(above, { [knob]: end }) / top) - Math.log(time(below, { [knob]: end }) / bottom)),
    );
    const [left, right] = [above, below].map((name) => run.backends[name].spread[launch].map(Math.log));
    const least = sum(moves.map((ends) => Math.min(0, ...ends) ** 2));
    const most = sum(moves.map((ends) => Math.max(0, ...ends) ** 2));
    const down = Math.sqrt(left[0] ** 2 + right[1] ** 2 + least), up = Math.sqrt(left[1] ** 2 + right[0] ** 2 + most);
    return [ratio, ratio * Math.exp(-down), ratio * Math.exp(up)];
  }

  function compared(data, run, key, problem, launch) {
    const { M, K, N, group_size } = problem;
    const pair = key === run.gpu ? run.pairs[`${launch} ${M} ${K} ${N} ${group_size ?? -1}`] : undefined;
    if (pair) {
      const [fp16_us, int4_us, speedup, speedup_low, speedup_high] = pair;
      return { fp16_us, int4_us, speedup, speedup_low, speedup_high, kind: "measured" };
    }
    const [speedup, speedup_low, speedup_high] = ratioBand(data, run, FP16, INT4, key, problem, launch);
    const [fp16_us, int4_us] = [FP16, INT4].map((name) => known(data, run, name, key, problem, launch).us);
    return { fp16_us, int4_us, speedup, speedup_low, speedup_high, kind: "predicted" };
  }

  function limiter(data, run, key, problem, launch, row) {
    const rules = data.rules, side = scaled(data, run, run.backends[INT4], key, {}), bits = bitsAt(side.bits, problem);
    if (key === run.gpu && launch === "graph" && row.kind === "measured" && run.copy_gb_s) {
      const bytes = Math.round((problem.N * problem.K * bits) / 8) + 2 * problem.M * (problem.K + problem.N);
      return bytes / (row.int4_us * 1e3) / run.copy_gb_s >= rules.copy_fraction ? "memory" : "not memory";
    }
    const gpu = data.gpus[key], whole = { ...problem, bits };
    if (launch === "eager" && device(rules, side, gpu, whole) < side.host_us) return "Python's launch";
    const longest = {};
    for (const [part, us] of Object.entries(parts(rules, side, gpu, whole)))
      longest[rules.limiters[part]] = (longest[rules.limiters[part]] ?? 0) + us;
    return Object.keys(longest).sort().reduce((best, name) => (longest[name] > longest[best] ? name : best));
  }

  // --- the answer ------------------------------------------------------------------------------------------------

  function products(data, run, model, key, M, tp, group, launch) {
    const layers = projections(data.rules, model, tp, M, group);
    layers.push({ layer: HEAD, K: model.hidden, N: Math.ceil(model.vocab / tp), group_size: null, calls: 1, tokens: M });
    return layers.map((layer) => {
      const problem = { M: layer.tokens, K: layer.K, N: layer.N, group_size: layer.group_size };
      const row = compared(data, run, key, problem, launch), shown = { ...layer, ...row };
      if (layer.group_size === null) {
        Object.assign(shown, { int4_us: null, speedup: null, speedup_low: null, speedup_high: null, limiter: "–" });
        return { ...shown, quantise: layer.layer === HEAD ? "kept in FP16" : "cannot" };
      }
      const quantise = row.speedup_low > 1 ? "yes" : row.speedup_high < 1 ? "no" : "tie";
      return { ...shown, limiter: limiter(data, run, key, problem, launch, row), quantise };
    });
  }

  function totals(rows) {
    const of = (each) => sum(rows.map(each)), fp16 = of((row) => row.fp16_us * row.calls);
    const where = (row, us) => (row.quantise === "yes" ? us : row.fp16_us) * row.calls;
    const advised = of((row) => where(row, row.int4_us));
    const end = (name) => fp16 / of((row) => where(row, row.fp16_us / row[name]));
    return {
      fp16, advised, int4: of((row) => (row.int4_us ?? row.fp16_us) * row.calls), speedup: fp16 / advised,
      speedup_low: end("speedup_low"), speedup_high: end("speedup_high"),
    };
  }

  function restOf(rules, model, gpu) {
    const slower = Math.sqrt(rules.rest_gb_s / gpu.dram_gb_s);
    return { us: ((rules.rest_us * model.layers) / rules.rest_layers) * slower,
             factor: Math.max(rules.rough, slower, 1 / slower) };
  }

  function stepSpeedup(whole, rest) {
    const of = (products, us) => (whole.fp16 + us) / (whole.fp16 / products + us);
    const ends = [whole.speedup_low, whole.speedup_high].flatMap((each) =>
      [of(each, rest.us / rest.factor), of(each, rest.us * rest.factor)]);
    return [of(whole.speedup, rest.us), Math.min(...ends), Math.max(...ends)];
  }

  function memoryOf(rules, model, gpu, tp, group) {
    const layers = projections(rules, model, tp, 1, group);
    const stored = model.weights.map((weight, place) => ({
      count: layers[place].K * layers[place].N * weight.layers * weight.experts, size: layers[place].group_size }));
    const tables = Math.ceil(model.vocab / tp) * model.hidden * (model.tied ? 1 : 2) * 2;
    const scales = sum(stored.map(({ count, size }) => (size ? (count / size) * 2 : 0)));
    const fp16 = tables + sum(stored.map(({ count }) => count * 2));
    const int4 = tables + scales + sum(stored.map(({ count, size }) => count * (size ? 0.5 : 2)));
    const cache = sideOf(model.cache, tp) * 2, room = gpu.memory_gb * 1e9 * rules.usable;
    const context = (weights) => (weights <= room ? Math.floor((room - weights) / cache) : -1);
    return { fp16, int4, scales, usable: room, cache, context_fp16: context(fp16), context_int4: context(int4) };
  }

  function keysAndValues(data, run, model, key, M, tp, group, launch) {
    const weight = model.weights.find((each) => each.layer === "qkv_proj");
    if (!weight) return [];
    const K = sideOf(weight.K, tp), both = sideOf([weight.N[1]], tp), size = groupFor(data.rules, K, group);
    if (size === null) return [];
    const shapes = [["k_proj, v_proj", Math.floor(both / 2), 2 * weight.layers], ["kv_proj", both, weight.layers]];
    return shapes.map(([layer, N, calls]) => {
      const row = compared(data, run, key, { M, K, N, group_size: size }, launch);
      return { layer, K, N, calls, ...row, gain_us: calls * (row.fp16_us - row.int4_us) };
    });
  }

  function rivalOf(data, run, key, rows, launch) {
    const quantised = rows.filter((row) => row.int4_us !== null);
    const able = data.rules.rivals.filter((name) => launch in (run.backends[name]?.spread ?? {}));
    const rivals = able.map((backend) => {
      const each = quantised.map((row) => {
        const problem = { M: row.tokens, K: row.K, N: row.N, group_size: row.group_size };
        const [middle, low, high] = ratioBand(data, run, backend, INT4, key, problem, launch);
        const theirs = known(data, run, backend, key, problem, launch), ratio = theirs.us / row.int4_us;
        const sure = theirs.measured && row.kind === "measured";
        const ends = sure ? [ratio, ratio] : [(ratio * low) / middle, (ratio * high) / middle];
        return [row.int4_us * row.calls, ratio, ...ends];
      });
      const weight = sum(each.map(([ours]) => ours));
      const [ratio, low, high] = [1, 2, 3].map((place) => sum(each.map((one) => one[0] * one[place])) / weight);
      return { backend, ratio, low, high, as_good: low <= 1 };
    });
    return quantised.length && rivals.length ? rivals.reduce((best, one) => (one.ratio < best.ratio ? one : best)) : null;
  }

  /* question: {model: key or an object as fromConfig returns, gpu, m, tp, launch}; throws Error in words. */
  function advice(data, question) {
    const { gpu: key, m: M, tp, launch } = question, rules = data.rules, gpu = data.gpus[key];
    const model = typeof question.model === "string" ? data.models[question.model] : question.model;
    if (!model) throw new Error(`no model ${question.model}`);
    if (!gpu) throw new Error(`no GPU ${key}`);
    if (!(Number.isInteger(M) && M >= 1 && M <= rules.most_tokens)) throw new Error(`tokens must be 1 to ${rules.most_tokens}`);
    if (!degreesOf(rules, model).includes(tp))
      throw new Error(`${tp} GPUs cannot share this model evenly; possible: ${degreesOf(rules, model).join(", ")}`);
    const run = data.runs[key] ?? data.runs[data.default_run];
    if (![FP16, INT4].every((name) => launch in (run.backends[name]?.spread ?? {})))
      throw new Error(`run ${run.run_id} did not time this way of launching`);
    const group = Math.min(128, rules.group_sizes.includes(model.stored) ? model.stored : 128);
    const rows = products(data, run, model, key, M, tp, group, launch), whole = totals(rows);
    const rest = restOf(rules, model, gpu), [speedup, speedup_low, speedup_high] = stepSpeedup(whole, rest);
    const step = { fp16_us: whole.fp16 + rest.us, int4_us: whole.advised + rest.us, speedup, speedup_low, speedup_high };
    step.tokens_per_s = (M * 1e6) / step.int4_us;
    return {
      rows, products: whole, rest, step, memory: memoryOf(rules, model, gpu, tp, group),
      kv: keysAndValues(data, run, model, key, M, tp, group, launch), rival: rivalOf(data, run, key, rows, launch),
      run: { run_id: run.run_id, gpu: run.name }, gpu: gpu.name,
    };
  }

  // --- a config.json ---------------------------------------------------------------------------------------------

  const KEYS = {
    hidden: ["hidden_size", "n_embd"], layers: ["num_hidden_layers", "n_layer"], heads: ["num_attention_heads", "n_head"],
    intermediate: ["intermediate_size"], vocab: ["vocab_size"],
  };

  /* A dense decoder with gated feed-forward layers; what is not one is refused in words. */
  function fromConfig(data, text) {
    let top;
    try { top = JSON.parse(text); } catch (error) { throw new Error(`not JSON: ${error.message}`); }
    if (top === null || typeof top !== "object" || Array.isArray(top)) throw new Error("expected a JSON object with keys such as hidden_size");
    const config = top.text_config ? { tie_word_embeddings: top.tie_word_embeddings, ...top.text_config } : top;
    const elsewhere = "; `tinygemm advise --model config.json` reads more kinds";
    if (!data.families.includes(config.model_type)) throw new Error(`model_type ${JSON.stringify(config.model_type)} is not read here${elsewhere}`);
    if ((config.num_local_experts ?? config.num_experts ?? config.n_routed_experts ?? 0) > 1) throw new Error(`experts are not read here${elsewhere}`);
    const count = (keys, otherwise) => {
      const key = keys.find((name) => config[name] !== undefined && config[name] !== null) ?? keys[0];
      const value = config[key] ?? otherwise;
      if (!Number.isInteger(value) || value < 1) throw new Error(`${key} must be a positive integer, got ${JSON.stringify(config[key] ?? null)}`);
      return value;
    };
    const read = Object.fromEntries(Object.entries(KEYS).map(([name, keys]) => [name, count(keys)]));
    const kv = count(["num_key_value_heads"], read.heads), width = count(["head_dim"], read.hidden / read.heads);
    if (read.heads % kv) throw new Error(`num_key_value_heads=${kv} does not divide num_attention_heads=${read.heads}`);
    const one = [read.intermediate, 1, false], said = top.quantization_config ?? config.quantization_config ?? {};
    const weight = (layer, K, N) => ({ layer, K, N, layers: read.layers, experts: 1, used: 1 });
    return {
      hidden: read.hidden, layers: read.layers, vocab: read.vocab,
      tied: config.tie_word_embeddings ?? data.tied.includes(config.model_type),
      stored: (said.bits ?? said.w_bit) === 4 ? (said.group_size ?? said.q_group_size ?? null) : null,
      cache: [[kv, 2 * width * read.layers, true]],
      weights: [
        weight("qkv_proj", read.hidden, [[read.heads, width, false], [kv, 2 * width, true]]),
        weight("o_proj", [[read.heads, width, false]], read.hidden),
        weight("gate_up_proj", read.hidden, [one, one]), weight("down_proj", [one], read.hidden),
      ],
    };
  }

  /* The speedup of INT4 at every point of a map of K and N, for the GPU, tokens and launch of a question. */
  function map(data, question, sizes) {
    const { gpu: key, m: M, launch } = question, run = data.runs[key] ?? data.runs[data.default_run];
    const at = (K, N) => compared(data, run, key, { M, K, N, group_size: 128 }, launch).speedup;
    return sizes.flatMap((K) => sizes.map((N) => ({ K, N, speedup: at(K, N) })));
  }

  return { advice, fromConfig, degreesOf, map };
})();

// --- the page ----------------------------------------------------------------------------------------------------------

(() => {
  const ms = (us) => (us / 1e3).toFixed(2), gb = (bytes) => (bytes / 1e9).toFixed(1);
  /* nothing where both ends are within half a percent of their middle: as base/words.py prints an interval */
  const bracket = (low, high) => (high - low <= 0.005 * Math.abs(high + low) ? "" : ` (${low.toFixed(2)} to ${high.toFixed(2)})`);
  const band = ({ speedup, speedup_low, speedup_high }) => `${speedup.toFixed(2)}×${bracket(speedup_low, speedup_high)}`;
  const element = (tag, text, properties = {}) => Object.assign(document.createElement(tag), { textContent: text }, properties);

  function sentence(question, found) {
    const { step, memory, run } = found, name = typeof question.model === "string" ? question.model : "your model";
    const verdict = step.speedup_low > 1 ? "Yes" : step.speedup_high <= 1 ? "No" : "Open";
    const where = `on ${question.tp === 1 ? "one" : question.tp} ${found.gpu}`;
    const what = question.m === 1 ? `a token of ${name}` : `a step of ${question.m} tokens of ${name}`;
    const fits = memory.context_int4 < 0 ? ", if only the weights fitted into its memory" : "";
    const source = run.gpu === found.gpu ? "" : ` Projected from the ${run.gpu}.`;
    return `${verdict}: ${where}, ${what} takes ${ms(step.int4_us)} ms with INT4 and ${ms(step.fp16_us)} ms in FP16, ` +
      `${band(step)}: ${Math.round(step.tokens_per_s).toLocaleString("en")} tokens/s${fits}.${source}`;
  }

  function facts(data, found) {
    const { products, rest, memory, kv, rival } = found;
    const fits = (name, room) => (room > 0 ? `${name} fits with ${room.toLocaleString("en")} tokens of context` : `${name} does not fit`);
    const told = [
      ["Step", `products ${ms(products.fp16)} ms in FP16, ${ms(products.advised)} ms with INT4; the rest about ${ms(rest.us)} ms (estimate)`],
      ["Memory", `weights ${gb(memory.fp16)} GB in FP16, ${gb(memory.int4)} GB in INT4, per GPU: ${fits("FP16", memory.context_fp16)}, ${fits("INT4", memory.context_int4)}`],
    ];
    if (kv.length) told.push(["K and V alone", `INT4 saves ${ms(kv[0].gain_us)} ms a step as two products (${kv[0].speedup.toFixed(2)}×), ${ms(kv[1].gain_us)} ms as one (${kv[1].speedup.toFixed(2)}×)`]);
    if (rival) told.push(["Other kernel", `${data.names[rival.backend]} takes ${rival.ratio.toFixed(2)} times as long${bracket(rival.low, rival.high)}: ${rival.as_good ? "would do as well within the band" : "would not do as well"}`]);
    return told;
  }

  function table(rows) {
    const shown = element("table", "", { className: "table" });
    shown.append(element("caption", "Per projection"));
    const head = shown.createTHead().insertRow(), body = shown.createTBody();
    for (const name of ["Projection", "K×N", "Calls", "FP16, µs", "INT4, µs", "Speedup", "Limiter", "Quantise?", "Kind"])
      head.append(element("th", name, { scope: "col" }));
    for (const row of rows) {
      const line = body.insertRow();
      line.append(element("th", row.layer, { scope: "row" }));
      const cells = [`${row.K}×${row.N}`, row.calls, row.fp16_us.toFixed(1), row.int4_us?.toFixed(1) ?? "–",
        row.speedup === null ? "–" : band(row), row.limiter, row.quantise, row.kind];
      for (const cell of cells) line.append(element("td", String(cell)));
    }
    return shown;
  }

  const SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536], CELL = 44, LEFT = 62, TOP = 8;
  const place = (size) => (Math.min(Math.max(Math.log2(size), 9), 16) - 9 + 0.5) * CELL;
  /* below 1 a warm colour, above it green to the ratio of the bytes; dark letters are legible on all of them */
  const shade = (speedup) => (speedup < 1 ? "#f6cfa9" : `hsl(152 45% ${95 - 8 * Math.min(speedup - 1, 4)}%)`);

  /* Where the projections of a model lie on the map of K and N: a drawing, and in words what it shows. */
  function position(data, question, rows) {
    const side = SIZES.length * CELL, svg = (tag, of, text = "") => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(of)) made.setAttribute(name, value);
      made.textContent = text;
      return made;
    };
    const shown = rows.filter((row) => row.speedup !== null), middle = { "text-anchor": "middle", "font-size": 12 };
    const told = shown.map((row) => `${row.layer} at ${row.K}×${row.N}, ${row.speedup.toFixed(1)}×`).join("; ");
    const drawn = svg("svg", { viewBox: `0 0 ${LEFT + side + 4} ${TOP + side + 40}`, role: "img", "aria-label": `Map of the speedup of INT4 by K and N. ${told}.` });
    for (const { K, N, speedup } of TinyGemm.map(data, question, SIZES)) {
      const x = LEFT + place(N) - CELL / 2, y = TOP + place(K) - CELL / 2;
      drawn.append(svg("rect", { x, y, width: CELL, height: CELL, fill: shade(speedup), stroke: "#fff" }),
        svg("text", { ...middle, x: x + CELL / 2, y: y + CELL - 5, "font-size": 10, fill: "#3c4043" }, speedup.toFixed(1)));
    }
    SIZES.forEach((size) => drawn.append(
      svg("text", { ...middle, x: LEFT + place(size), y: TOP + side + 16 }, String(size)),
      svg("text", { x: LEFT - 6, y: TOP + place(size) + 4, "text-anchor": "end", "font-size": 12 }, String(size))));
    drawn.append(svg("text", { ...middle, x: LEFT + side / 2, y: TOP + side + 34 }, "N"),
      svg("text", { x: 4, y: TOP + side / 2, "font-size": 12 }, "K"));
    for (const row of shown) {
      const x = LEFT + place(row.N), y = TOP + place(row.K);
      drawn.append(svg("circle", { cx: x, cy: y, r: 5, fill: "#1a237e", stroke: "#fff" }),
        svg("text", { ...middle, x, y: y - 8, "font-weight": "bold", fill: "#1a237e", stroke: "#fff", "stroke-width": 3, "paint-order": "stroke" }, row.layer.replace("_proj", "")));
    }
    const figure = element("figure", "", { className: "explorer-map" }), caption = "Where these products lie: speedup of INT4 over FP16 in the library for every K and N at " +
      `${question.m === 1 ? "one token" : `${question.m} tokens`} in flight. Each dot is a projection as one GPU holds it; of a larger size it lies on the edge.`;
    figure.append(drawn, element("figcaption", caption));
    return figure;
  }

  function start(box) {
    const data = JSON.parse(box.querySelector("script.explorer-data").textContent);
    const form = box.querySelector("form"), output = box.querySelector(".explorer-answer"), still = box.querySelector(".explorer-still");
    const field = (name) => form.elements.namedItem(name);
    const fill = (select, options) => select.replaceChildren(...options.map(([value, text]) => element("option", text, { value })));
    fill(field("model"), [...Object.keys(data.models).map((key) => [key, key]), ["config", "a config.json, pasted below"]]);
    fill(field("gpu"), Object.entries(data.gpus).map(([key, gpu]) => [key, gpu.name + (key in data.runs ? " (measured)" : "")]));
    fill(field("m"), Array.from({ length: data.rules.most_tokens }, (_, place) => [place + 1, place + 1]));
    fill(field("tp"), data.rules.degrees.map((tp) => [tp, tp]));
    const asked = new URLSearchParams(location.hash.startsWith("#case?") ? location.hash.slice(6) : "");
    for (const [name, otherwise] of Object.entries(data.start)) {
      const wanted = asked.get(name) ?? String(otherwise);
      field(name).value = wanted;
      if (field(name).selectedIndex < 0) field(name).value = String(otherwise);
    }
    if (asked.get("config")) { field("config").value = asked.get("config"); }

    function answer(changed) {
      const pasted = field("model").value === "config", question = { gpu: field("gpu").value, m: +field("m").value, tp: +field("tp").value, launch: field("launch").value };
      field("config").closest(".explorer-config").hidden = !pasted;
      const link = new URLSearchParams({ model: field("model").value, ...question });
      if (pasted) link.set("config", field("config").value);
      if (changed) history.replaceState(null, "", `#case?${link}`);
      try {
        question.model = pasted ? TinyGemm.fromConfig(data, field("config").value || "{}") : field("model").value;
        const found = TinyGemm.advice(data, question), list = element("dl", "");
        for (const [name, text] of facts(data, found)) list.append(element("dt", name), element("dd", text));
        const wide = element("div", "", { className: "pst-scrollable-table-container", tabIndex: 0 });
        wide.setAttribute("role", "region");
        wide.setAttribute("aria-label", "Per projection");
        wide.append(table(found.rows));
        output.querySelector(".explorer-sentence").textContent = sentence(question, found);
        output.querySelector(".explorer-more").replaceChildren(list, wide, position(data, question, found.rows),
          element("p", `From run ${found.run.run_id} of the ${found.run.gpu}; cold L2. Not included: sampling, and what GPUs exchange.`));
      } catch (error) {
        output.querySelector(".explorer-sentence").textContent = `No answer: ${error.message}.`;
        output.querySelector(".explorer-more").replaceChildren();
      }
    }
    form.addEventListener("input", () => answer(true));
    form.addEventListener("submit", (event) => event.preventDefault());
    still.hidden = true;
    form.hidden = output.hidden = false;
    answer(false);
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".explorer").forEach(start));
})();
