// Keeps a page up to date: when the daemon says that something changed, the page is asked for
// anew, and the parts of it that are marked as live are made the same, in place, so that focus,
// scrolling and what is unfolded stay. It knows no route but its own page and the stream of
// events, and sends nothing.
"use strict";
(() => {
  const live = document.getElementById("live");
  const heard = document.getElementById("heard");
  // A page whose numbers change without the database says how often to look, in seconds.
  const every = () => Number(document.querySelector("[data-every]")?.dataset.every ?? 30);
  let at = Date.now();
  let busy = false;
  let again = false;

  const show = (state, text) => {
    live.hidden = false;
    live.className = "live " + state;
    live.textContent = text;
  };

  // Makes `old` like `fresh`, keeping the elements that are the same ones.
  const key = (node) => (node.nodeType === 1 && node.id ? node.id : null);
  const same = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && key(a) === key(b);
  const follow = (old, fresh) => {
    if (old.nodeType !== 1) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    for (const { name } of [...old.attributes]) {
      // What a person unfolded stays unfolded.
      if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    let mine = old.firstChild;
    for (const theirs of [...fresh.childNodes]) {
      let match = mine;
      // Rows have names: one that moved is moved, and keeps the focus where it has it.
      if (key(theirs)) {
        match = mine;
        while (match && !same(match, theirs)) match = match.nextSibling;
      }
      if (match && same(match, theirs)) {
        if (match !== mine) old.insertBefore(match, mine);
        else mine = mine.nextSibling;
        follow(match, theirs);
      } else {
        old.insertBefore(document.importNode(theirs, true), mine);
      }
    }
    while (mine) {
      const next = mine.nextSibling;
      mine.remove();
      mine = next;
    }
  };

  const refresh = async () => {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    try {
      const answer = await fetch(location.href, { headers: { "X-Keywheel-Live": "1" }, cache: "no-store" });
      if (answer.status === 401) {
        location.reload();
        return;
      }
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const before = document.querySelector("[data-headline]")?.textContent;
      const focus = document.activeElement;
      for (const part of fresh.querySelectorAll("[data-live]")) {
        const mine = document.getElementById(part.id);
        if (mine) follow(mine, part);
      }
      // What was moved lost it.
      if (focus?.isConnected && focus !== document.activeElement) focus.focus({ preventScroll: true });
      const after = document.querySelector("[data-headline]")?.textContent;
      if (after && after !== before) heard.textContent = after;
      at = Date.now();
    } catch {
      // The stream says that the daemon is gone, and when it is back.
    } finally {
      busy = false;
      if (again) {
        again = false;
        refresh();
      }
    }
  };

  let stream = null;
  const listen = () => {
    stream = new EventSource("/dashboard/events");
    stream.addEventListener("open", () => show("on", "Live"));
    stream.addEventListener("changed", refresh);
    stream.addEventListener("tick", () => {
      if (Date.now() - at >= every() * 1000) refresh();
    });
    stream.addEventListener("error", () => {
      show("off", stream.readyState === EventSource.CLOSED ? "Not live" : "Reconnecting…");
      // The session may be over; asking for the page finds out.
      refresh();
    });
  };
  // A browser has six connections to a host: pages that nobody sees must not keep them.
  const look = () => {
    if (document.hidden) {
      stream?.close();
      stream = null;
    } else if (!stream) {
      listen();
    }
  };
  document.addEventListener("visibilitychange", look);
  addEventListener("pagehide", () => {
    stream?.close();
    stream = null;
  });
  addEventListener("pageshow", look);
  look();
})();
