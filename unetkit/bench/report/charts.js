// The three charts: cost against cost with its front; effects and rounds as dots and intervals.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (selector) => document.querySelector(selector);
  const choice = (name) => find(`[data-choice="${name}"]`);
  const chart = (name) => find(`[data-chart="${name}"]`);
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  // Plotly reads tags in text: a name is no tag.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down"];
  const VERDICTS = { slower: "triangle-right", faster: "triangle-left", same: "circle", inconclusive: "circle-open" };
  const TONES = { more: "slower", less: "faster", "not judged": "inconclusive" };
  const tone = (verdict) => TONES[verdict] ?? verdict;
  const roomy = matchMedia("(min-width: 43.75em)");

  const layout = (height, more) => ({
    height,
    font: { family: "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif", size: 12, color: ink("ink") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hovermode: "closest",
    hoverlabel: { bgcolor: ink("shade"), bordercolor: ink("rule"), font: { color: ink("ink") }, align: "left" },
    // On a phone a finger on the chart scrolls the page.
    dragmode: roomy.matches ? "zoom" : false,
    ...more,
  });
  const draw = (name, traces, made) =>
    Plotly.react(chart(name), traces, made, {
      displaylogo: false,
      responsive: true,
      displayModeBar: roomy.matches ? "hover" : false,
      modeBarButtons: [["zoom2d", "resetScale2d", "toImage"]],
      toImageButtonOptions: { format: "svg", filename: name },
    });
  const ruled = (more) => ({
    gridcolor: ink("rule"), linecolor: ink("faint"), showline: true, zeroline: false, automargin: true, ...more,
  });
  const shortened = (text, most) => plain(text.length > most ? `${text.slice(0, most - 1)}…` : text);

  const costs = () => {
    const { axes, points, fronts } = data.costs;
    const [x, y, condition] = ["x", "y", "condition"].map((name) => Number(choice(name).value));
    const scaled = (value, at) => (value === null ? null : value * axes[at].scale);
    const numbers = (at) => points.map((point) => scaled(point.values[at], at));
    const [xs, ys] = [numbers(x), numbers(y)];
    const shown = points.flatMap((point, i) =>
      point.condition === condition && xs[i] !== null && ys[i] !== null ? [i] : []);
    const front = [...(fronts[condition][`${Math.min(x, y)} ${Math.max(x, y)}`] ?? [])];
    front.sort((a, b) => xs[a] - xs[b] || ys[a] - ys[b]);
    const traces = [steps(front, xs, ys, axes[x]), ...groups(shown, front, xs, ys, x, y), numbered(front, xs, ys)];
    draw("costs", traces, layout(roomy.matches ? 520 : 420, {
      margin: { l: 60, r: 16, t: 16, b: 56 },
      xaxis: ruled({ title: { text: plain(axes[x].title) }, ...spread(shown.map((i) => xs[i])) }),
      yaxis: ruled({ title: { text: plain(axes[y].title) }, ...spread(shown.map((i) => ys[i])) }),
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    }));
    named(front, x, y);
  };
  const spread = (numbers) => {
    const least = Math.min(...numbers);
    return { type: least > 0 && Math.max(...numbers) > 20 * least ? "log" : "linear" };
  };
  const steps = (front, xs, ys, axis) => ({
    x: front.map((i) => xs[i]), y: front.map((i) => ys[i]), mode: "lines", hoverinfo: "skip", name: "Pareto front",
    line: { shape: axis.better === "less" ? "hv" : "vh", color: ink("faint"), width: 1.5, dash: "dot" },
  });
  const groups = (shown, front, xs, ys, x, y) => {
    const { points } = data.costs;
    const factor = choice("colour").value;
    const values = [...new Set(points.map((point) => point.factors[factor] ?? "none"))];
    return values.map((value, at) => {
      const mine = shown.filter((i) => (points[i].factors[factor] ?? "none") === value);
      return {
        x: mine.map((i) => xs[i]), y: mine.map((i) => ys[i]), mode: "markers", name: plain(value),
        hoverinfo: "text", hovertext: mine.map((i) => hover(i, x, y)), showlegend: values.length > 1,
        marker: {
          opacity: 1, color: ink(`c${at % 8}`), symbol: SYMBOLS[at % 8],
          size: mine.map((i) => (front.includes(i) ? 13 : 9)),
          line: { width: 1, color: ink("paper") },
        },
      };
    });
  };
  const hover = (i, x, y) => {
    const { axes, points } = data.costs;
    const said = [x, y].map((at) => `${axes[at].name}: ${points[i].texts[at]}`);
    return [`row ${i + 1}: ${points[i].name}`, ...said, points[i].line].map(plain).join("<br>");
  };
  const numbered = (front, xs, ys) => ({
    x: front.map((i) => xs[i]), y: front.map((i) => ys[i]), mode: "text", hoverinfo: "skip", showlegend: false,
    text: front.map((_, at) => `<b>${at + 1}</b>\u00a0\u00a0`), textposition: "bottom left", cliponaxis: false,
    textfont: { size: 13, color: ink("ink") },
  });
  const named = (front, x, y) => {
    const { axes, points } = data.costs;
    find(".nofront").hidden = Boolean(axes[x].better && axes[y].better) || x === y;
    find(".front").replaceChildren(...front.map((i) => {
      const item = document.createElement("li");
      const small = document.createElement("small");
      small.textContent = ` ${[x, y].map((at) => `${axes[at].name} ${points[i].texts[at]}`).join(", ")}; row ${i + 1}`;
      item.append(points[i].name, small);
      return item;
    }));
  };

  // One line an item: its dots, and the mark with its interval; names beside it, or above it where room is scarce.
  const intervals = (name, items, title) => {
    const wide = roomy.matches;
    const folded = !wide && items.some((item) => item.name.length + item.words.length > 50);
    const step = wide ? 26 : folded ? 60 : 46;
    const places = items.map((_, at) => -at);
    const marks = {
      x: items.map((item) => item.ratio), y: places, mode: "markers", hoverinfo: "text",
      hovertext: items.map((item) => `${plain(item.name)}<br>${plain(item.words)}`),
      error_x: {
        type: "data", symmetric: false, thickness: 2, width: 4, color: ink("ink"),
        array: items.map((item) => item.high - item.ratio), arrayminus: items.map((item) => item.ratio - item.low),
      },
      marker: {
        size: 11, opacity: 1, color: items.map((item) => ink(tone(item.verdict))),
        symbol: items.map((item) => VERDICTS[tone(item.verdict)] ?? "circle"),
        line: { width: 1, color: items.map((item) => ink(tone(item.verdict))) },
      },
    };
    const spots = {
      x: items.flatMap((item) => item.dots.map(([at]) => at)), mode: "markers", hoverinfo: "text",
      y: items.flatMap((item, row) => item.dots.map((_, at) => -row - (at % 5 - 2) * (wide ? 0.09 : 0.05))),
      hovertext: items.flatMap((item) => item.dots.map(([at, said]) => plain(said || `a round: ${at}`))),
      marker: { size: 5, color: ink("faint"), opacity: 0.4 },
    };
    const reach = [...spots.x, ...items.flatMap((item) => [item.low, item.high]), 1].filter((at) => at > 0);
    const [least, most] = [Math.min(...reach), Math.max(...reach)].map(Math.log10);
    const pad = Math.max(0.06 * (most - least), 0.005);
    const room = (texts) => 18 + 6.6 * Math.min(Math.max(...texts.map((text) => text.length), 0), 56);
    draw(name, [spots, marks], layout(items.length * step + 76, {
      showlegend: false,
      margin: wide
        ? { l: room(items.map((item) => item.name)), r: room(items.map((item) => item.words)), t: 8, b: 56 }
        : { l: 8, r: 8, t: step - 20, b: 56 },
      xaxis: ruled({
        type: "log", range: [least - pad, most + pad], title: { text: title }, automargin: false,
        ...ticks(10 ** (least - pad), 10 ** (most + pad), wide ? 8 : 4),
      }),
      yaxis: { visible: false, range: [0.6 - items.length, wide ? 0.6 : 0.5], fixedrange: true },
      shapes: [{
        type: "line", x0: 1, x1: 1, yref: "paper", y0: 0, y1: 1, layer: "between", line: { color: ink("ink"), width: 1 },
      }],
      annotations: items.flatMap((item, at) => labels(item, -at, wide, folded)),
    }));
  };
  const labels = (item, y, wide, folded) => {
    const shared = { y, xref: "paper", yref: "y", showarrow: false, font: { size: 12 } };
    const said = { ...shared, font: { size: 12, color: ink(tone(item.verdict)) } };
    if (wide) {
      return [
        { ...shared, x: 0, xanchor: "right", xshift: -8, text: shortened(item.name, 56) },
        { ...said, x: 1, xanchor: "left", xshift: 8, text: plain(item.words) },
      ];
    }
    const text = `${shortened(item.name, 56)}${folded ? "<br>" : ": "}${plain(item.words)}`;
    const above = { x: 0, xanchor: "left", yanchor: "bottom", yshift: 8, font: { size: 11 }, align: "left" };
    return [{ ...shared, ...above, text }];
  };
  // Ticks of a log axis at round ratios, as many as there is room for.
  const ticks = (least, most, room) => {
    const vals = most / least > 3 ? decades(least, most, room) : even(least, most, room);
    return { tickvals: vals, ticktext: vals.map((each) => String(Number(each.toPrecision(4)))) };
  };
  const even = (least, most, room) => {
    const sizes = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5];
    const size = sizes.find((each) => (most - least) / each <= room) ?? 5;
    const vals = [];
    for (let at = Math.ceil((least - 1) / size); 1 + at * size <= most; at += 1) vals.push(1 + at * size);
    return vals;
  };
  const decades = (least, most, room) => {
    const within = (digits) =>
      Array.from({ length: 17 }, (_, at) => digits.map((digit) => digit * 10 ** (at - 8))).flat()
        .filter((each) => each >= least && each <= most);
    return [[1, 2, 3, 5, 7], [1, 2, 5], [1, 3]].map(within).find((vals) => vals.length <= room) ?? within([1]);
  };

  const effects = () => {
    if (!choice("effect")) return;
    const metric = choice("effect").value;
    intervals("effects", data.effects[metric], `${plain(metric)} with the second over with the first`);
    for (const row of find("#table-effects tbody").rows) row.hidden = row.dataset.metric !== metric;
  };
  const rounds = () => {
    if (!choice("timed")) return;
    const metric = choice("timed").value;
    intervals("rounds", data.rounds[metric][Number(choice("rounds").value)], `${plain(metric)} over the baseline’s`);
  };

  const offer = (name, titles, values, chosen, then) => {
    if (!choice(name)) return;
    choice(name).closest("label").hidden = !titles.length;
    choice(name).replaceChildren(...titles.map((title, at) => new Option(title, values[at])));
    if (values.includes(chosen)) choice(name).value = chosen;
    choice(name).addEventListener("change", then);
  };
  const { axes, conditions, colours } = data.costs;
  const named_axes = axes.map((axis) => axis.title);
  const places = (list) => list.map((_, at) => at);
  const first = axes.findIndex((axis) => axis.name === "parameters");
  const timed = axes.findIndex((axis) => axis.name === `${Object.keys(data.rounds)[0]}-ratio`);
  offer("x", named_axes, places(axes), Math.max(first, 0), costs);
  offer("y", named_axes, places(axes), timed >= 0 ? timed : Math.min(1, axes.length - 1), costs);
  offer("condition", conditions, places(conditions), 0, costs);
  offer("colour", colours, colours, colours.includes("encoder") ? "encoder" : colours[0], costs);
  offer("effect", Object.keys(data.effects), Object.keys(data.effects), Object.keys(data.rounds)[0], effects);
  offer("timed", Object.keys(data.rounds), Object.keys(data.rounds), null, rounds);
  offer("rounds", conditions, places(conditions), 0, rounds);

  const everything = () => {
    if (axes.length) costs();
    effects();
    rounds();
  };
  everything();
  roomy.addEventListener("change", everything);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", everything);
})();
