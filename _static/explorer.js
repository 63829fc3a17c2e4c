/* A slider over the pictures of an explorer, which utils/plotting.py writes as HTML. */
(() => {
  const make = (name, attributes, parent) => {
    const element = document.createElement(name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    return parent.appendChild(element);
  };
  const start = box => {
    const frames = [...box.querySelectorAll(":scope > .frame")];
    const labels = frames.map(frame => frame.dataset.label);
    const bar = document.createElement("div"), last = frames.length - 1;
    bar.className = "explorer-bar";
    box.prepend(bar);
    const button = make("button", {type: "button"}, bar);
    const name = make("label", {}, bar);
    name.append(box.dataset.name + " ");
    const slider = make("input", {type: "range", min: 0, max: last, step: 1}, name);
    const value = make("output", {}, name);
    const show = number => {
      frames.forEach((frame, k) => { frame.hidden = k !== number; });
      slider.value = number;
      slider.setAttribute("aria-valuetext", labels[number]);
      value.textContent = labels[number];
    };
    let timer;
    const stop = () => {
      clearInterval(timer);
      timer = undefined;
      button.className = "play";
      button.setAttribute("aria-label", "Play: " + box.dataset.name);
    };
    const play = () => {
      if (Number(slider.value) === last) show(0);
      button.className = "pause";
      button.setAttribute("aria-label", "Pause");
      timer = setInterval(() => {
        show(Number(slider.value) + 1);
        if (Number(slider.value) === last) stop();
      }, 900);
    };
    button.onclick = () => timer ? stop() : play();
    slider.oninput = () => { stop(); show(Number(slider.value)); };
    show(Math.max(0, frames.findIndex(frame => !frame.hidden)));
    stop();
    // A picture that waits to be asked for is fetched before its turn comes.
    bar.addEventListener("pointerenter", () => fetchAll(frames), {once: true});
    bar.addEventListener("focusin", () => fetchAll(frames), {once: true});
  };
  const fetchAll = frames => frames.forEach(frame =>
    frame.querySelectorAll("img").forEach(image => { image.loading = "eager"; }));
  const startAll = () => document.querySelectorAll(".explorer").forEach(start);
  if (document.readyState === "loading")
    document.addEventListener("DOMContentLoaded", startAll);
  else startAll();
})();
