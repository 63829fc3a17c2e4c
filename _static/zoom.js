/* A figure that is shown smaller than it is can be opened at its full size. */
(() => {
  const dialog = document.createElement("dialog");
  dialog.className = "zoom";
  dialog.innerHTML = '<button type="button" aria-label="Close">×</button><img>';
  const picture = dialog.querySelector("img");
  dialog.querySelector("button").onclick = () => dialog.close();
  dialog.onclick = event => { if (event.target === dialog) dialog.close(); };
  const open = image => {
    picture.src = image.src;
    picture.alt = image.alt;
    dialog.showModal();
  };
  const offer = image => {
    if (image.naturalWidth < 1.15 * image.clientWidth || image.closest("a")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "zoom-button";
    button.setAttribute("aria-label", "Enlarge the figure");
    button.textContent = "⤢";
    button.onclick = () => open(image);
    image.after(button);
  };
  const start = () => {
    document.body.append(dialog);
    for (const image of document.querySelectorAll(".cell_output img")) {
      if (image.complete && image.naturalWidth) offer(image);
      else image.addEventListener("load", () => offer(image), {once: true});
    }
  };
  if (document.readyState === "loading")
    document.addEventListener("DOMContentLoaded", start);
  else start();
})();
