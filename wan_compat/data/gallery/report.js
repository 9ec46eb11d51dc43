
"use strict";
// Filters, order and players. Text becomes text (textContent), addresses come from links that were written with the page;
// nothing here makes markup of a string.
(() => {
  const byId = (id) => document.getElementById(id);
  const place = byId("cards");
  const cards = [...place.querySelectorAll(".card")];
  const words = new Map(cards.map((card) => [
    card,
    [...card.querySelectorAll(".prompt, .label, .error, dd")].map((part) => part.textContent).join("\n").toLowerCase(),
  ]));
  const stateButtons = [...document.querySelectorAll(".states button")];
  const codeButtons = [...document.querySelectorAll(".codes .code")];
  const fields = { text: byId("text"), model: byId("model"), seed: byId("seed"), sort: byId("sort") };
  const chosen = { state: "", code: "" };
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;

  // -- filters and order; they stand in the address behind the #, so that a page that is loaded again has them still

  const number = (card, name) => Number(card.dataset[name]);
  const text = (card) => card.querySelector(".prompt").textContent;
  const orders = {
    index: (a, b) => number(a, "index") - number(b, "index"),
    newest: (a, b) => number(b, "index") - number(a, "index"),
    slowest: (a, b) => number(b, "seconds") - number(a, "seconds"),
    // Without a time: last, as in no order of times.
    fastest: (a, b) => (number(a, "seconds") || Infinity) - (number(b, "seconds") || Infinity) || 0,
    seed: (a, b) => number(a, "seed") - number(b, "seed"),
    prompt: (a, b) => text(a).localeCompare(text(b)),
  };
  let order = "index";

  function apply() {
    const wanted = fields.text.value.trim().toLowerCase();
    const seed = fields.seed.value.trim();
    let shown = 0;
    for (const card of cards) {
      const fits = (!chosen.state || card.dataset.state === chosen.state)
        && (!chosen.code || card.dataset.code === chosen.code)
        && (!fields.model.value || card.dataset.model === fields.model.value)
        && (!seed || card.dataset.seed === seed)
        && (!wanted || words.get(card).includes(wanted));
      card.hidden = !fits;
      shown += fits;
    }
    if (orders[fields.sort.value] && order !== fields.sort.value) {
      order = fields.sort.value;
      place.append(...cards.sort((a, b) => orders[order](a, b) || orders.index(a, b)));
    }
    for (const button of stateButtons) button.setAttribute("aria-pressed", String(button.dataset.state === chosen.state));
    for (const button of codeButtons) button.setAttribute("aria-pressed", String(button.dataset.code === chosen.code));
    byId("shown").textContent = shown === cards.length ? `${shown} shown` : `${shown} of ${cards.length} shown`;
    byId("nothing").hidden = shown > 0;
    remember();
  }

  function remember() {
    const kept = new URLSearchParams();
    for (const [name, field] of Object.entries(fields)) {
      if (field.value && !(name === "sort" && field.value === "index")) kept.set(name, field.value);
    }
    for (const [name, value] of Object.entries(chosen)) if (value) kept.set(name, value);
    try {
      history.replaceState(null, "", kept.size ? `#${kept}` : location.pathname + location.search);
    } catch { /* a browser that counts how often: then the address stays behind */ }
  }

  function recall() {
    const kept = new URLSearchParams(location.hash.slice(1));
    for (const [name, field] of Object.entries(fields)) {
      const value = kept.get(name);
      if (value !== null) field.value = value;
      if (field.selectedIndex === -1) field.selectedIndex = 0;
    }
    for (const name of Object.keys(chosen)) chosen[name] = kept.get(name) ?? "";
    apply();
  }

  for (const field of Object.values(fields)) field.addEventListener("input", apply);
  for (const button of stateButtons) button.addEventListener("click", () => { chosen.state = button.dataset.state; apply(); });
  for (const button of codeButtons) {
    button.addEventListener("click", () => { chosen.code = chosen.code === button.dataset.code ? "" : button.dataset.code; apply(); });
  }
  byId("clear").addEventListener("click", () => {
    fields.text.value = fields.seed.value = "";
    fields.model.selectedIndex = fields.sort.selectedIndex = 0;
    chosen.state = chosen.code = "";
    apply();
  });
  place.addEventListener("click", (event) => {
    const seed = event.target.closest("button.seed");
    if (seed) { fields.seed.value = seed.closest(".card").dataset.seed; apply(); }
  });
  place.addEventListener("toggle", (event) => {
    event.target.closest(".card")?.classList.toggle("open", event.target.open);
  }, true);
  addEventListener("hashchange", recall);

  // -- players: one for the tile under the pointer or the focus; made when needed, since a page may have a thousand

  function player(link) {
    const video = document.createElement("video");
    video.muted = video.loop = video.playsInline = true;
    video.preload = "metadata";
    video.tabIndex = -1;
    video.addEventListener("error", () => {
      video.remove();
      if (link.querySelector(".broken")) return;
      const note = document.createElement("span");
      note.className = "broken";
      note.textContent = "this browser cannot play it";
      link.append(note);
    });
    video.src = link.href;
    return video;
  }

  function play(link) {
    if (calm || link.querySelector(".broken")) return;
    if (link.dataset.kind === "video") {
      const video = link.querySelector("video") ?? player(link);
      if (!video.isConnected) link.append(video);
      video.play().catch(() => {});
    } else if (link.dataset.kind === "picture" && !link.querySelector("img.moving")) {
      const picture = document.createElement("img");
      picture.className = "moving";
      picture.alt = "";
      picture.src = link.href;
      link.append(picture);
    }
  }

  function stop(link) {
    if (link.matches(":hover") || link === document.activeElement) return;
    link.querySelector("img.moving")?.remove();
    const video = link.querySelector("video");
    if (!video) return;
    video.pause();
    // With a picture below, the player goes; without, its first frame is the picture.
    if (link.querySelector("img")) { video.removeAttribute("src"); video.load(); video.remove(); } else video.currentTime = 0;
  }

  const links = [...place.querySelectorAll("a.media")];
  for (const link of links) {
    link.addEventListener("pointerenter", () => play(link));
    link.addEventListener("focus", () => play(link));
    link.addEventListener("pointerleave", () => stop(link));
    link.addEventListener("blur", () => stop(link));
    link.addEventListener("click", (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey || link.dataset.kind === "file") return;
      event.preventDefault();
      view(link);
    });
  }
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      if (!entry.target.querySelector("video")) entry.target.append(player(entry.target));
    }
  });
  for (const link of links) if (link.dataset.kind === "video" && !link.querySelector("img")) seen.observe(link);

  // -- the viewer

  const viewer = byId("viewer");
  const stage = viewer.querySelector(".stage");
  let current = null;

  function empty() {
    stage.querySelector("video")?.pause();
    stage.replaceChildren();
  }

  function view(link) {
    empty();
    current = link;
    const card = link.closest(".card");
    const shown = document.createElement(link.dataset.kind === "video" ? "video" : "img");
    shown.addEventListener("error", () => {
      const note = document.createElement("p");
      note.textContent = "This browser cannot play this file; another program may.";
      stage.replaceChildren(note);
    });
    if (link.dataset.kind === "video") { shown.controls = shown.loop = shown.autoplay = shown.playsInline = true; } else shown.alt = "";
    shown.src = link.href;
    stage.append(shown);
    viewer.querySelector(".prompt").textContent = text(card);
    viewer.querySelector(".file").textContent = `#${card.dataset.index}  ${link.title}`;
    byId("open").href = link.href;
    if (!viewer.open) viewer.showModal();
    viewer.focus(); // not the video, whose own keys are the arrows too
  }

  function step(by) {
    const there = cards.filter((card) => !card.hidden).map((card) => card.querySelector('a.media:not([data-kind="file"])')).filter(Boolean);
    if (there.length) view(there[(there.indexOf(current) + by + there.length) % there.length]);
  }

  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("close", () => { empty(); current?.focus(); });
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (viewer.open) {
      if (event.target instanceof HTMLVideoElement) return; // its own keys
      if (event.key === "ArrowLeft") step(-1);
      if (event.key === "ArrowRight") step(1);
    } else if (event.key === "/" && !event.target.closest?.("input, select")) {
      event.preventDefault();
      fields.text.focus();
    }
  });

  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  recall();
})();
