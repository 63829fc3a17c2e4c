/* On paper a page is light, whatever it is on the screen. */
(() => {
  const root = document.documentElement, paper = matchMedia("print");
  let theme;
  paper.addEventListener("change", () => {
    if (paper.matches) theme = root.dataset.theme;
    root.dataset.theme = paper.matches ? "light" : theme;
  });
})();
