"use strict";
// What the pages do beyond links and forms. Everything works without it.

// Spend under the pointer, or stepped through by arrow keys.
const chart = document.getElementById("spend-curve");
if (chart) {
  const points = JSON.parse(chart.dataset.points);
  const pointer = chart.querySelector(".pointer");
  const readOut = document.getElementById("read-out");
  let chosen = points.length - 1;
  const show = (index) => {
    chosen = Math.min(Math.max(index, 0), points.length - 1);
    const [x, time, spend] = points[chosen];
    pointer.setAttribute("x1", x);
    pointer.setAttribute("x2", x);
    readOut.textContent = `${time}: ${spend}`;
  };
  chart.addEventListener("pointermove", (event) => {
    const place = new DOMPoint(event.clientX, event.clientY);
    const x = place.matrixTransform(chart.getScreenCTM().inverse()).x;
    let nearest = 0;
    points.forEach(([at], index) => {
      if (Math.abs(at - x) < Math.abs(points[nearest][0] - x)) nearest = index;
    });
    show(nearest);
  });
  chart.tabIndex = 0;
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) {
      event.preventDefault();
      show(chosen + step);
    }
  });
}

// A part of a page that is fetched anew every few seconds, unless somebody is at work in it.
const part = document.querySelector("[data-refresh]");
if (part) {
  setInterval(async () => {
    if (document.hidden || part.contains(document.activeElement)) return;
    try {
      const response = await fetch(location.href, { headers: { "X-Requested-With": "refresh" } });
      if (!response.ok) return;
      const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
      const found = fresh.querySelector("[data-refresh]");
      if (found) part.replaceChildren(...found.childNodes);
    } catch {
      // The server is away: what is shown stays, and the next try may succeed.
    }
  }, Number(part.dataset.refresh) * 1000);
}
