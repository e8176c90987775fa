// Every page works without this file: it keeps the progress bar going, tells how strong a new
// password is, offers to print, and says that a click was heard.
"use strict";

const find = (selector) => document.querySelector(selector);

function followProgress() {
  const box = find("#progress[data-live]");
  if (!box) return;
  const look = async () => {
    try {
      const answer = await fetch(box.dataset.url, { headers: { Accept: "application/json" } });
      if (!answer.ok || answer.redirected) return;
      const figures = await answer.json();
      const bar = find("#bar");
      if (figures.known && !bar) return location.reload();
      if (figures.known) {
        bar.max = figures.total || 1;
        bar.value = figures.total ? figures.encrypted : 1;
        find("#figures").textContent = figures.text;
        if (!figures.running) return;
      }
    } catch {
      // Out of reach for now; the next look may find it.
    }
    setTimeout(look, 3000);
  };
  setTimeout(look, 3000);
}

function measureStrength() {
  const meter = find("#meter");
  const field = find("#new");
  if (!meter || !field) return;
  let timer = 0;
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const form = new FormData(field.form);
      const sent = new URLSearchParams({ token: form.get("token"), new: field.value, name: form.get("name") || "" });
      const answer = await fetch(meter.dataset.url, { method: "POST", body: sent });
      if (!answer.ok || answer.redirected) return;
      const found = await answer.json();
      meter.hidden = !found.text;
      meter.textContent = found.text;
      meter.dataset.score = found.score;
    }, 400);
  });
}

function offerPrinting() {
  const button = find("#print");
  if (!button) return;
  button.hidden = false;
  button.addEventListener("click", () => window.print());
}

function sayWait() {
  for (const form of document.forms) {
    form.addEventListener("submit", () => {
      const button = form.querySelector("button[data-wait]");
      if (!button) return;
      button.disabled = true;
      button.textContent = button.dataset.wait;
    });
  }
}

followProgress();
measureStrength();
offerPrinting();
sayWait();
