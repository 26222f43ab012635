"use strict";
(() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const ofSeries = (series) =>
    typeof series === "number" ? colour(series < 8 ? `series-${series}` : "line") : colour(series || "quiet");

  const paintChips = () => {
    for (const chip of document.querySelectorAll(".chip")) {
      chip.style.background = ofSeries(Number(chip.dataset.series));
    }
  };

  const painted = (figure) => {
    const ink = colour("ink");
    const axis = { gridcolor: colour("line"), linecolor: colour("quiet"), tickcolor: colour("quiet"), showline: true };
    const data = figure.data.map((trace) => {
      const own = ofSeries(trace.meta && trace.meta.series);
      const copy = { ...trace };
      if (trace.type === "bar" || (trace.mode || "").includes("markers")) {
        copy.marker = { ...trace.marker, color: own };
      }
      if ((trace.mode || "").includes("lines")) {
        copy.line = { ...trace.line, color: own };
      }
      for (const error of ["error_x", "error_y"]) {
        if (trace[error]) copy[error] = { ...trace[error], color: own };
      }
      return copy;
    });
    const layout = {
      ...figure.layout,
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("line"), activecolor: colour("quiet") },
      hoverlabel: { bgcolor: colour("shade"), bordercolor: colour("line"), font: { color: ink } },
      xaxis: { ...figure.layout.xaxis, ...axis, showgrid: figure.layout.xaxis.showgrid !== false },
      yaxis: { ...figure.layout.yaxis, ...axis, showgrid: figure.layout.yaxis.showgrid !== false },
    };
    return [data, layout];
  };

  const figures = [...document.querySelectorAll("script[data-plot]")].map((script) => [
    document.getElementById(script.dataset.plot),
    JSON.parse(script.textContent),
  ]);
  const options = { responsive: true, displaylogo: false, modeBarButtons: [["toImage"]] };

  const paint = () => {
    paintChips();
    for (const [place, figure] of figures) Plotly.react(place, ...painted(figure), options);
  };

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.sort ?? cell.textContent.trim();
    const number = Number(value);
    return value === "" ? null : Number.isNaN(number) ? value : number;
  };

  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };

  const sort = (header) => {
    const table = header.closest("table");
    const rows = [...table.tBodies[0].rows];
    const column = header.cellIndex;
    const values = rows.map((row) => valueOf(row, column));
    const numeric = values.some((value) => typeof value === "number");
    const before = header.getAttribute("aria-sort");
    const down = before === null ? numeric : before === "ascending";
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    rows
      .map((row) => [row, valueOf(row, column)])
      .sort(([, a], [, b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        return down ? compare(b, a) : compare(a, b);
      })
      .forEach(([row]) => table.tBodies[0].append(row));
  };

  for (const button of document.querySelectorAll("table.sortable thead button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  addEventListener("beforeprint", paint);
  addEventListener("afterprint", paint);
  matchMedia("print").addEventListener("change", paint);
  paint();
})();
