/* On paper a page is light, whatever it is on the screen, and solutions are open. */
(() => {
  const root = document.documentElement, paper = matchMedia("print");
  let theme, closed = [];
  paper.addEventListener("change", () => {
    if (paper.matches) {
      theme = root.dataset.theme;
      const folded = ["details.sd-dropdown", ".tag_hide-cell > details"]
        .map(kind => kind + ":not([open])").join(", ");
      closed = [...document.querySelectorAll(folded)];
    }
    for (const details of closed) details.open = paper.matches;
    root.dataset.theme = paper.matches ? "light" : theme;
  });
})();
