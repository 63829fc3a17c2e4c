/* On paper a page is light, whatever it is on the screen, and solutions are open. */
(() => {
  const root = document.documentElement, paper = matchMedia("print");
  const folded = ["details.sd-dropdown", "details.card-fold", ".tag_hide-cell > details"]
    .map(kind => kind + ":not([open])").join(", ");
  let printing = false, theme, closed = [];
  const turn = on => {
    if (on === printing) return;
    printing = on;
    if (on) {
      theme = root.dataset.theme;
      closed = [...document.querySelectorAll(folded)];
    }
    for (const details of closed) details.open = on;
    root.dataset.theme = on ? "light" : theme;
  };
  /* The change of media comes after pages were counted: too late for what unfolds. */
  addEventListener("beforeprint", () => turn(true));
  addEventListener("afterprint", () => turn(false));
  paper.addEventListener("change", () => turn(paper.matches));
})();
