// The three charts: one metric against another with its Pareto front, effects, and rounds.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (selector) => document.querySelector(selector);
  const choice = (name) => find(`[data-choice="${name}"]`);
  const chart = (name) => find(`[data-chart="${name}"]`);
  const cssColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  // Plotly interprets tags in text, which names must not contain.
  const escapeTags = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "triangle-down"];
  const VERDICT_SYMBOLS = {
    slower: "triangle-right", faster: "triangle-left", same: "circle", inconclusive: "circle-open",
    better: "triangle-up", worse: "triangle-down",
  };
  // Verdicts on metrics that are not timed, and the verdicts on times with the same colour and symbol.
  const STYLES = {
    more: "slower", less: "faster", "not judged": "inconclusive", better: "faster", worse: "slower",
    exploratory: "inconclusive", "": "inconclusive",
  };
  const styleOf = (verdict) => STYLES[verdict] ?? verdict;
  const element = (name, options, ...children) => {
    const made = Object.assign(document.createElement(name), options);
    made.append(...children);
    return made;
  };
  // The parts of a text, with each option of a command in an element that is not broken after its dashes.
  const unbroken = (text) => text.split(/(--[\w-]+)/).map((part) =>
    (part.startsWith("--") ? element("span", { className: "flag" }, part) : part));
  const wideScreen = matchMedia("(min-width: 43.75em)");

  const layout = (height, options) => ({
    height,
    font: { family: "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif", size: 12, color: cssColour("ink") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hovermode: "closest",
    hoverlabel: {
      bgcolor: cssColour("shade"), bordercolor: cssColour("rule"), font: { color: cssColour("ink") }, align: "left",
    },
    modebar: {
      bgcolor: "rgba(0,0,0,0)", color: cssColour("faint"), activecolor: cssColour("ink"), orientation: "h",
    },
    // On a phone, a finger on the chart scrolls the page.
    dragmode: wideScreen.matches ? "zoom" : false,
    ...options,
  });
  const draw = (name, traces, plotLayout) =>
    Plotly.react(chart(name), traces, plotLayout, {
      displaylogo: false,
      responsive: true,
      displayModeBar: wideScreen.matches ? "hover" : false,
      modeBarButtons: [["zoom2d", "resetScale2d", "toImage"]],
      toImageButtonOptions: { format: "svg", filename: name },
    });
  const axisLayout = (options) => ({
    gridcolor: cssColour("rule"), linecolor: cssColour("faint"), showline: true, zeroline: false, automargin: true,
    ...options,
  });
  const truncate = (text, length) => escapeTags(text.length > length ? `${text.slice(0, length - 1)}…` : text);

  const drawCosts = () => {
    const { axes, points, fronts } = data.costs;
    const [x, y, condition] = ["x", "y", "condition"].map((name) => Number(choice(name).value));
    const scale = (value, axis) => (value === null ? null : value * axes[axis].scale);
    const scaledValues = (axis) => points.map((point) => scale(point.values[axis], axis));
    const [xs, ys] = [scaledValues(x), scaledValues(y)];
    const shown = points.flatMap((point, i) =>
      point.condition === condition && xs[i] !== null && ys[i] !== null ? [i] : []);
    const front = [...(fronts[condition][`${Math.min(x, y)} ${Math.max(x, y)}`] ?? [])];
    front.sort((a, b) => xs[a] - xs[b] || ys[a] - ys[b]);
    const traces = [
      ...(front.length > 1 ? [frontLine(front, xs, ys, axes[x])] : []), ...pointTraces(shown, front, xs, ys, x, y),
      rowNumbers(shown, front, xs, ys),
    ];
    draw("costs", traces, layout(wideScreen.matches ? 520 : 420, {
      margin: { l: 60, r: 16, t: 16, b: 56 },
      xaxis: axisLayout({ title: { text: escapeTags(axes[x].title) }, ...axisType(shown.map((i) => xs[i])) }),
      yaxis: axisLayout({ title: { text: escapeTags(axes[y].title) }, ...axisType(shown.map((i) => ys[i])) }),
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    }));
    listFront(front, x, y);
  };
  const axisType = (numbers) => {
    const smallest = Math.min(...numbers);
    return { type: smallest > 0 && Math.max(...numbers) > 20 * smallest ? "log" : "linear" };
  };
  const frontLine = (front, xs, ys, axis) => ({
    x: front.map((i) => xs[i]), y: front.map((i) => ys[i]), mode: "lines", hoverinfo: "skip", name: "Pareto front",
    line: { shape: axis.better === "less" ? "hv" : "vh", color: cssColour("faint"), width: 1.5, dash: "dot" },
  });
  const pointTraces = (shown, front, xs, ys, x, y) => {
    const { points } = data.costs;
    const factor = choice("colour").value;
    const values = [...new Set(points.map((point) => point.factors[factor] ?? "none"))];
    return values.map((value, number) => {
      const group = shown.filter((i) => (points[i].factors[factor] ?? "none") === value);
      return {
        x: group.map((i) => xs[i]), y: group.map((i) => ys[i]), mode: "markers", name: escapeTags(value),
        hoverinfo: "text", hovertext: group.map((i) => hoverText(i, x, y)), showlegend: values.length > 1,
        error_x: errorBars(group, x, number), error_y: errorBars(group, y, number),
        marker: {
          opacity: 1, color: cssColour(`c${number % 8}`), symbol: SYMBOLS[number % 8],
          size: group.map((i) => (front.includes(i) ? 13 : 9)),
          line: { width: 1, color: cssColour("paper") },
        },
      };
    });
  };
  const errorBars = (group, axis, number) => {
    const { axes, points } = data.costs;
    const widths = group.map((i) => (points[i].errors[axis] ?? 0) * axes[axis].scale);
    return { type: "data", array: widths, visible: widths.some(Boolean), thickness: 1, width: 3, color: cssColour(`c${number % 8}`) };
  };
  const hoverText = (i, x, y) => {
    const { axes, points } = data.costs;
    const values = [x, y].map((axis) => `${axes[axis].name}: ${points[i].texts[axis]}`);
    return [`row ${points[i].row}: ${points[i].name}`, ...values, points[i].line].map(escapeTags).join("<br>");
  };
  // Points have the number of their row, those on the front first; a number that would cover another is left out.
  const rowNumbers = (shown, front, xs, ys) => {
    const { points } = data.costs;
    const [atX, atY] = [[xs, chart("costs").clientWidth - 76], [ys, wideScreen.matches ? 430 : 330]].map(([values, length]) => {
      const { type } = axisType(shown.map((i) => values[i]));
      const moved = (i) => (type === "log" ? Math.log(values[i]) : values[i]);
      const ends = [Math.min(...shown.map(moved)), Math.max(...shown.map(moved))];
      return (i) => (length * (moved(i) - ends[0])) / (ends[1] - ends[0] || 1);
    });
    const numbered = [];
    for (const i of [...front, ...shown.filter((one) => !front.includes(one))]) {
      const isFree = numbered.every((j) => Math.abs(atX(i) - atX(j)) > 26 || Math.abs(atY(i) - atY(j)) > 13);
      if (isFree) numbered.push(i);
    }
    return {
      x: numbered.map((i) => xs[i]), y: numbered.map((i) => ys[i]), mode: "text", hoverinfo: "skip", showlegend: false,
      text: numbered.map((i) => (front.includes(i) ? `\u00a0\u00a0<b>${points[i].row}</b>` : `\u00a0\u00a0${points[i].row}`)),
      textposition: "middle right", cliponaxis: false, textfont: { size: 11, color: cssColour("ink") },
    };
  };
  const listFront = (front, x, y) => {
    const { axes, points } = data.costs;
    find(".nofront").hidden = Boolean(axes[x].better && axes[y].better) || x === y;
    find(".single").hidden = front.length !== 1;
    find(".front").replaceChildren(...front.map((i) => {
      const values = [x, y].map((axis) => `${axes[axis].name} ${points[i].texts[axis]}`).join(", ");
      const link = element("a", { href: `#row-${points[i].row}` }, `row ${points[i].row}`);
      return element("li", {}, link, ", ", ...unbroken(points[i].name), element("small", {}, ` ${values}`));
    }));
  };

  // One line for each item: its dots, and a marker with its interval. The names are beside the line, or above it on a
  // narrow screen.
  // Ratios have a logarithmic axis around 1, and differences a linear one around 0.
  const drawIntervals = (name, items, title, isDifference = false) => {
    const isWide = wideScreen.matches;
    const isFolded = !isWide && items.some((item) => item.name.length + item.text.length > 50);
    const lineHeight = isWide ? 26 : isFolded ? 60 : 46;
    const markers = {
      x: items.map((item) => item.ratio), y: items.map((_, line) => -line), mode: "markers", hoverinfo: "text",
      hovertext: items.map((item) => `${escapeTags(item.name)}<br>${escapeTags(item.text)}`),
      error_x: {
        type: "data", symmetric: false, thickness: 2, width: 4, color: cssColour("ink"),
        array: items.map((item) => item.high - item.ratio), arrayminus: items.map((item) => item.ratio - item.low),
      },
      marker: {
        size: 11, opacity: 1, color: items.map((item) => cssColour(styleOf(item.verdict))),
        symbol: items.map((item) => VERDICT_SYMBOLS[item.verdict] ?? VERDICT_SYMBOLS[styleOf(item.verdict)] ?? "circle"),
        line: { width: 1, color: items.map((item) => cssColour(styleOf(item.verdict))) },
      },
    };
    const dots = {
      x: items.flatMap((item) => item.dots.map(([ratio]) => ratio)), mode: "markers", hoverinfo: "text",
      y: items.flatMap((item, line) => item.dots.map((_, dot) => -line - (dot % 5 - 2) * (isWide ? 0.09 : 0.05))),
      hovertext: items.flatMap((item) => item.dots.map(([ratio, text]) => escapeTags(text || `round: ${ratio}`))),
      marker: { size: 5, color: cssColour("faint"), opacity: 0.4 },
    };
    const reference = isDifference ? 0 : 1;
    const shown = [...dots.x, ...items.flatMap((item) => [item.low, item.high]), reference]
      .filter((ratio) => isDifference || ratio > 0);
    const ends = [Math.min(...shown), Math.max(...shown)];
    const [lowest, highest] = isDifference ? ends : ends.map(Math.log10);
    const padding = Math.max(0.06 * (highest - lowest), isDifference ? 1e-4 : 0.005);
    const axis = isDifference
      ? { type: "linear", nticks: isWide ? 10 : 4, tickformat: "+.4~f" }
      : { type: "log", ...ticks(10 ** (lowest - padding), 10 ** (highest + padding), isWide ? 8 : 4) };
    const textWidth = (texts) => 18 + 6.6 * Math.min(Math.max(...texts.map((text) => text.length), 0), 56);
    draw(name, [dots, markers], layout(items.length * lineHeight + (isWide ? 76 : 92), {
      showlegend: false,
      margin: isWide
        ? { l: textWidth(items.map((item) => item.name)), r: textWidth(items.map((item) => item.text)), t: 8, b: 56 }
        : { l: 8, r: 8, t: lineHeight - 20, b: 72 },
      xaxis: axisLayout({
        range: [lowest - padding, highest + padding], title: { text: isWide ? title : folded(title) },
        automargin: false, ...axis,
      }),
      yaxis: { visible: false, range: [0.6 - items.length, isWide ? 0.6 : 0.5], fixedrange: true },
      shapes: [{
        type: "line", x0: reference, x1: reference, yref: "paper", y0: 0, y1: 1, layer: "between",
        line: { color: cssColour("ink"), width: 1 },
      }],
      annotations: items.flatMap((item, line) => labels(item, -line, isWide, isFolded)),
    }));
  };
  const labels = (item, y, isWide, isFolded) => {
    const shared = { y, xref: "paper", yref: "y", showarrow: false, font: { size: 12 } };
    if (isWide) {
      const verdictFont = { size: 12, color: cssColour(styleOf(item.verdict)) };
      return [
        { ...shared, x: 0, xanchor: "right", xshift: -8, text: truncate(item.name, 56) },
        { ...shared, x: 1, xanchor: "left", xshift: 8, text: escapeTags(item.text), font: verdictFont },
      ];
    }
    const text = `${truncate(item.name, 56)}${isFolded ? "<br>" : ": "}${escapeTags(item.text)}`;
    const above = { x: 0, xanchor: "left", yanchor: "bottom", yshift: 8, font: { size: 11 }, align: "left" };
    return [{ ...shared, ...above, text }];
  };
  // A title on two lines, broken at the space nearest to its middle, if it is too long for a phone.
  const folded = (text) => {
    if (text.length <= 44) return text;
    const spaces = [...text.matchAll(/ /g)].map((match) => match.index);
    const middle = spaces.reduce((a, b) => (Math.abs(b - text.length / 2) < Math.abs(a - text.length / 2) ? b : a));
    return `${text.slice(0, middle)}<br>${text.slice(middle + 1)}`;
  };
  // Ticks at round ratios for a logarithmic axis, at most `count` of them if possible.
  const ticks = (lowest, highest, count) => {
    const values = highest / lowest > 3
      ? logarithmicTicks(lowest, highest, count) : linearTicks(lowest, highest, count);
    return { tickvals: values, ticktext: values.map((value) => String(Number(value.toPrecision(4)))) };
  };
  const linearTicks = (lowest, highest, count) => {
    const steps = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5];
    const step = steps.find((candidate) => (highest - lowest) / candidate <= count) ?? 5;
    const values = [];
    for (let i = Math.ceil((lowest - 1) / step); 1 + i * step <= highest; i += 1) values.push(1 + i * step);
    return values;
  };
  const logarithmicTicks = (lowest, highest, count) => {
    const withDigits = (digits) =>
      Array.from({ length: 17 }, (_, i) => digits.map((digit) => digit * 10 ** (i - 8))).flat()
        .filter((value) => value >= lowest && value <= highest);
    const digitSets = [[1, 2, 3, 5, 7], [1, 2, 5], [1, 3]];
    return digitSets.map(withDigits).find((values) => values.length <= count) ?? withDigits([1]);
  };

  const drawEffects = () => {
    if (!choice("effect")) return;
    const metric = choice("effect").value;
    const title = `${escapeTags(metric)} with the second choice divided by that with the first`;
    drawIntervals("effects", data.effects[metric], title);
    for (const row of find("#table-effects tbody").rows) row.hidden = row.dataset.metric !== metric;
  };
  const drawRounds = () => {
    if (!choice("timed")) return;
    const metric = choice("timed").value;
    const items = data.rounds[metric][Number(choice("rounds").value)];
    drawIntervals("rounds", items, `${escapeTags(metric)} divided by the baseline’s`);
  };

  const { quality } = data;
  const drawDifferences = () => {
    if (!choice("difference")) return;
    const metric = choice("difference").value;
    drawIntervals("differences", quality.differences[metric], `${escapeTags(metric)} minus the baseline’s`, true);
  };
  const drawQualityEffects = () => {
    if (!choice("quality-effect")) return;
    const metric = choice("quality-effect").value;
    const title = `${escapeTags(metric)} with the second choice minus that with the first`;
    drawIntervals("quality-effects", quality.effects[metric], title, true);
  };
  const drawCurves = () => {
    if (!choice("curves") || !quality.curves.length) return;
    const selected = Number(choice("curves").value);
    const line = (points, name, number, options) => ({
      x: points.map(([epoch]) => epoch), y: points.map(([, value]) => value), mode: "lines+markers", name: escapeTags(name),
      line: { color: cssColour(`c${number % 8}`), width: 1.5, dash: ["solid", "dash", "dot"][Math.floor(number / 8) % 3] },
      marker: { size: 4 }, hovertemplate: `${escapeTags(name)}<br>epoch %{x}: %{y:.4f}<extra></extra>`, ...options,
    });
    const traces = selected < 0
      ? quality.curves.map((row, number) => line(meanCurve(Object.values(row.seeds)), row.name, number))
      : Object.entries(quality.curves[selected].seeds).map(([seed, points], number) => line(points, `seed ${seed}`, number));
    draw("curves", traces, layout(wideScreen.matches ? 460 : 400, {
      margin: { l: 60, r: 16, t: 16, b: 56 },
      xaxis: axisLayout({ title: { text: "epoch" } }),
      yaxis: axisLayout({ title: { text: "validation mIoU" } }),
      legend: { orientation: "h", y: -0.18, yanchor: "top", x: 0 }, showlegend: true,
    }));
  };
  const meanCurve = (seeds) =>
    (seeds[0] ?? []).map(([epoch], at) => {
      const values = seeds.filter((points) => points[at]?.[0] === epoch).map((points) => points[at][1]);
      return [epoch, values.reduce((sum, value) => sum + value, 0) / values.length];
    });
  const showImages = () => {
    if (!choice("image-a") || !quality?.images) return;
    const names = new Map(quality.images.rows);
    const [a, b] = ["image-a", "image-b"].map((name) => choice(name).value);
    const gap = (image) => Math.abs(image.scores[a] - image.scores[b]);
    const figure = (source, caption) => element(
      "figure", {}, element("img", { src: source, alt: caption, loading: "lazy" }), element("figcaption", {}, caption));
    const shown = [...quality.images.images].sort((one, other) => gap(other) - gap(one));
    find(".gallery").replaceChildren(...shown.map((image) => element(
      "div", { className: "compared" }, figure(image.image, image.name), figure(image.truth, "true mask"),
      ...[a, b].map((row) => figure(image.rows[row], `${names.get(row)}: ${image.scores[row].toFixed(3)}`)))));
    find(".legend").replaceChildren(...quality.images.classes.map(([name, colour]) => {
      const patch = element("span", { className: "patch" });
      patch.style.background = colour;
      return element("li", {}, patch, name);
    }));
  };

  const fillChoice = (name, titles, values, selected, onChange) => {
    if (!choice(name)) return;
    choice(name).closest("label").hidden = !titles.length;
    choice(name).replaceChildren(...titles.map((title, i) => new Option(title, values[i])));
    if (values.includes(selected)) choice(name).value = selected;
    choice(name).addEventListener("change", onChange);
  };
  const { axes, conditions, colours } = data.costs;
  const axisTitles = axes.map((axis) => axis.title);
  const indices = (list) => list.map((_, i) => i);
  const timedMetrics = Object.keys(data.rounds);
  const effectMetrics = Object.keys(data.effects);
  // By default quality against cost: a metric that should rise, if there is one, against the first time or else the
  // parameters; without one, the first time against the parameters.
  const parameters = axes.findIndex((axis) => axis.name === "parameters");
  const firstRatio = axes.findIndex((axis) => axis.name === `${timedMetrics[0]}-ratio`);
  const ofQuality = axes.findIndex((axis) => axis.name === (quality?.metric ?? data.costs.rising));
  const cost = firstRatio >= 0 ? firstRatio : Math.max(parameters, 0);
  const other = axes.findIndex((_, i) => i !== Math.max(parameters, 0));
  const defaultY = ofQuality >= 0 ? ofQuality : firstRatio >= 0 ? firstRatio : Math.max(other, 0);
  fillChoice("x", axisTitles, indices(axes), ofQuality >= 0 ? cost : Math.max(parameters, 0), drawCosts);
  fillChoice("y", axisTitles, indices(axes), defaultY, drawCosts);
  fillChoice("condition", conditions, indices(conditions), 0, drawCosts);
  fillChoice("colour", colours, colours, colours.includes("encoder") ? "encoder" : colours[0], drawCosts);
  fillChoice("effect", effectMetrics, effectMetrics, timedMetrics[0], drawEffects);
  fillChoice("timed", timedMetrics, timedMetrics, null, drawRounds);
  fillChoice("rounds", conditions, indices(conditions), 0, drawRounds);

  if (quality) {
    const measured = Object.keys(quality.differences).filter((name) => quality.differences[name].length);
    fillChoice("difference", measured, measured, quality.metric, drawDifferences);
    const affected = Object.keys(quality.effects);
    fillChoice("quality-effect", affected, affected, quality.metric, drawQualityEffects);
    const curveNames = ["means of all rows", ...quality.curves.map((row) => row.name)];
    fillChoice("curves", curveNames, curveNames.map((_, i) => i - 1), -1, drawCurves);
    if (quality.images) {
      const [ids, titles] = [0, 1].map((at) => quality.images.rows.map((row) => row[at]));
      fillChoice("image-a", titles, ids, ids[0], showImages);
      fillChoice("image-b", titles, ids, ids[1], showImages);
    }
  }

  const drawAll = () => {
    if (axes.length) drawCosts();
    drawDifferences();
    drawQualityEffects();
    drawCurves();
    showImages();
    drawEffects();
    drawRounds();
  };
  drawAll();
  wideScreen.addEventListener("change", drawAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
