/* A figure that is shown smaller than it is can be opened at its full size; a diagram,
   which has none of its own, where the screen is narrow. */
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
    picture.className = image.matches(".diagram, .diagram img") ? "diagram" : "";
    dialog.showModal();
  };
  const offer = image => {
    const drawn = image.matches(".diagram, .diagram img");
    const small = drawn ? image.clientWidth < 560 :
      image.naturalWidth >= 1.15 * image.clientWidth;
    if (!small || image.closest("a")) return;
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
    const figures =
      ".cell_output img, .first-picture img, img.diagram, .diagram img";
    for (const image of document.querySelectorAll(figures)) {
      if (image.complete && image.naturalWidth) offer(image);
      else image.addEventListener("load", () => offer(image), {once: true});
    }
  };
  if (document.readyState === "loading")
    document.addEventListener("DOMContentLoaded", start);
  else start();
})();
