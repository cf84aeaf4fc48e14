// Shows the values of a chart's lines where the pointer stands, read back from the places of their points.
for (const svg of document.querySelectorAll("svg.chart[data-x]")) {
  const ends = (text) => text.split(",").map(Number);
  const [lowX, highX] = ends(svg.dataset.x), [lowY, highY] = ends(svg.dataset.y);
  const [left, right, top, bottom] = ends(svg.dataset.box);
  const cursor = svg.querySelector(".cursor");
  const readout = svg.parentElement.querySelector(".readout");
  const lines = [...svg.querySelectorAll("polyline")].map((line) => ({
    name: line.dataset.name,
    points: line.getAttribute("points").split(" ").map((point) => point.split(",").map(Number)),
  }));
  const value = (y) => {
    const scaled = lowY + ((y - bottom) / (top - bottom)) * (highY - lowY);
    return Number((svg.dataset.log === "1" ? 10 ** scaled : scaled).toPrecision(3));
  };
  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
    const near = new Map();
    for (const { name, points } of lines) {
      if (at < points[0][0] - 8 || at > points.at(-1)[0] + 8) continue;
      const best = points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
      const known = near.get(name);
      if (!known || Math.abs(best[0] - at) < Math.abs(known[0] - at)) near.set(name, best);
    }
    const x = Math.min(right, Math.max(left, at));
    const step = Math.round(lowX + ((x - left) / (right - left)) * (highX - lowX));
    cursor.setAttribute("x1", x); cursor.setAttribute("x2", x);
    cursor.setAttribute("y1", top); cursor.setAttribute("y2", bottom);
    cursor.style.visibility = "visible";
    const values = [...near].map(([name, point]) => `${name} ≈ ${value(point[1])}`);
    readout.textContent = `step ${step.toLocaleString("en")}: ${values.join(" · ")}`;
  });
  svg.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    readout.textContent = "";
  });
}
