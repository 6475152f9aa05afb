(() => {
  "use strict";
  const interval = 2000, timeout = 8000;
  const main = document.querySelector("main"), lost = document.getElementById("lost");
  let timer, fetching = false, pointed = null;

  // change makes one tree like another and leaves alone what is the same, so that focus, selection and scrolling stay.
  function change(from, to) {
    for (const { name } of [...from.attributes]) if (!to.hasAttribute(name)) from.removeAttribute(name);
    for (const { name, value } of to.attributes) if (from.getAttribute(name) !== value) from.setAttribute(name, value);
    const old = [...from.childNodes], fresh = [...to.childNodes];
    fresh.forEach((node, i) => {
      const was = old[i];
      if (!was) from.append(document.adoptNode(node));
      else if (was.nodeType !== node.nodeType || was.nodeName !== node.nodeName || was.id !== node.id) was.replaceWith(document.adoptNode(node));
      else if (node.nodeType === Node.ELEMENT_NODE) change(was, node);
      else if (was.nodeValue !== node.nodeValue) was.nodeValue = node.nodeValue;
    });
    old.slice(fresh.length).forEach((node) => node.remove());
  }

  async function update() {
    if (fetching) return;
    fetching = true;
    clearTimeout(timer);
    try {
      const answer = await fetch("/now", { cache: "no-store", signal: AbortSignal.timeout(timeout) });
      if (!answer.ok) throw new Error(answer.status);
      change(main, new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main"));
      document.title = main.dataset.title;
      lost.hidden = true;
      if (pointed) point();
    } catch {
      lost.querySelector("span").textContent = main.querySelector(".at").textContent;
      lost.hidden = false;
      document.title = "No answer · " + main.dataset.title;
    }
    fetching = false;
    if (!document.hidden) timer = setTimeout(update, interval);
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : update()));
  timer = setTimeout(update, interval);

  // Pointing at a chart shows the values of that moment in the place of the present ones.
  function point() {
    const { card, x } = pointed, plot = card.querySelector(".plot"), cursor = card.querySelector(".cursor");
    const lines = [...card.querySelectorAll(".stroke")].reverse(), columns = lines[0].dataset.values.split("|").length;
    const column = Math.max(0, Math.min(columns - 1, Math.floor(x * columns)));
    cursor.setAttribute("x1", column);
    cursor.setAttribute("x2", column);
    plot.classList.add("pointed");
    const values = lines.map((line) => [line.dataset.name, line.dataset.values.split("|")[column]]).filter(([, value]) => value);
    const minutes = ((columns - 1 - column) * plot.querySelector("svg").dataset.minutes) / columns;
    const text = values.length === 0 ? "–" : values.length === 1 ? values[0][1] : values.map((v) => v.join(" ")).join(" · ");
    const now = card.querySelector(".now"), small = document.createElement("small");
    small.textContent = column === columns - 1 ? "now" : minutes < 2 ? Math.round(minutes * 60) + " s ago" : Math.round(minutes) + " min ago";
    now.replaceChildren(text + " ", small);
  }
  main.addEventListener("pointermove", (event) => {
    const plot = event.target.closest(".plot");
    if (!plot) return leave();
    const area = plot.querySelector("svg").getBoundingClientRect(), card = plot.closest(".chart");
    if (pointed && pointed.card !== card) leave();
    pointed = { card, x: (event.clientX - area.left) / area.width };
    point();
  });
  function leave() {
    if (!pointed) return;
    pointed.card.querySelector(".plot").classList.remove("pointed");
    pointed = null;
    update();
  }
  main.addEventListener("pointerleave", leave);
})();
