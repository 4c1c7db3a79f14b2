"use strict";
// Draws the figures in the colours of the reader's scheme, and again when the scheme changes.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  let width = document.documentElement.clientWidth;
  const letter = 7; // pixels, the mean width of a letter of an axis

  // An object with a key "colour" stands for a CSS variable.
  const alphaOf = (colour, alpha) => {
    const part = (at) => parseInt(colour.slice(at, at + 2), 16);
    return `rgba(${part(1)},${part(3)},${part(5)},${alpha})`;
  };
  const coloured = (value, style) => {
    if (Array.isArray(value)) {
      // Lists of numbers and texts hold no colours.
      const isPlain = value.every((part) => part === null || typeof part !== "object");
      return isPlain ? value : value.map((part) => coloured(part, style));
    }
    if (value === null || typeof value !== "object") return value;
    if ("colour" in value) {
      const colour = style.getPropertyValue(value.colour).trim();
      return "alpha" in value ? alphaOf(colour, value.alpha) : colour;
    }
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, coloured(part, style)]));
  };

  // Names on an axis: every n-th number of a layer, or upright words, so that none overlaps.
  const fitNames = (axis, room, isVertical) => {
    const names = axis.categoryarray;
    if (!names) return;
    const longest = Math.max(...names.map((name) => name.replace(/&\w+;/g, "x").length));
    const needed = isVertical ? 15 : longest * letter + 6;
    const fitting = Math.max(1, Math.floor(room / needed));
    if (names.length <= fitting) {
      axis.tickangle = 0;
      return;
    }
    const upright = Math.max(1, Math.floor(room / 15));
    const areShort = longest <= 4;
    if (!areShort && !isVertical) axis.tickangle = -90;
    else axis.tickangle = 0;
    const every = Math.ceil(names.length / (areShort || isVertical ? fitting : upright));
    if (every > 1) {
      axis.tickmode = "array";
      axis.tickvals = names.filter((_, index) => index % every === 0);
    }
  };

  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const font = getComputedStyle(document.body).fontFamily;
    const drawn = [];
    for (const [id, figure] of Object.entries(figures)) {
      const element = document.getElementById(id);
      const { data, layout } = coloured(figure, style);
      const room = element.clientWidth - 60;
      fitNames(layout.xaxis, room, false);
      fitNames(layout.yaxis, element.clientHeight - 110, true);
      layout.xaxis.nticks = Math.max(3, Math.floor(room / 80));
      layout.font.family = font;
      layout.hoverlabel.bgcolor = style.getPropertyValue("--surface").trim();
      layout.hoverlabel.font = { color: style.getPropertyValue("--text").trim(), family: font };
      const shown = element.data ? element.data.map((trace) => trace.visible) : [];
      data.forEach((trace, index) => { trace.visible = shown[index] ?? true; });
      const muted = style.getPropertyValue("--muted").trim();
      layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: layout.font.color };
      // On a narrow screen a finger scrolls the page instead of selecting a part of the figure.
      const isNarrow = width < 640;
      layout.dragmode = isNarrow ? false : "zoom";
      const config = {
        responsive: true,
        displaylogo: false,
        displayModeBar: isNarrow ? false : "hover",
        modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
      };
      drawn.push(Plotly.react(element, data, layout, config));
    }
    // Says in which scheme and for which width all figures are drawn.
    const done = `${scheme.matches ? "dark" : "light"} ${width}`;
    return Promise.all(drawn).then(() => { document.documentElement.dataset.drawn = done; });
  };

  // A name in the legend hides its series in all panels of the figure.
  document.addEventListener("click", (event) => {
    const button = event.target.closest(".legend button");
    if (!button) return;
    const hidden = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!hidden));
    for (const element of document.querySelectorAll(`[id="${button.dataset.figure}"] .plot`)) {
      const { series } = button.dataset;
      const traces = element.data.flatMap((trace, index) => (trace.legendgroup === series ? [index] : []));
      if (traces.length) Plotly.restyle(element, { visible: !hidden }, traces);
    }
  });

  // A wider or narrower page has room for more or fewer names.
  let waiting = 0;
  addEventListener("resize", () => {
    if (document.documentElement.clientWidth === width) return;
    width = document.documentElement.clientWidth;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(draw);
  });
  scheme.addEventListener("change", draw);
  draw();
})();
