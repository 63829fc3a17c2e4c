/* The sliders and buttons of the widgets have no names; who listens needs some. */
(() => {
  const BUTTONS = {play: "play or pause", pause: "play or pause", stop: "stop",
    retweet: "repeat", repeat: "repeat"};
  const name = () => {
    for (const handle of document.querySelectorAll(
      ".widget-slider .noUi-handle:not([aria-label])")) {
      const label = handle.closest(".widget-slider").querySelector(".widget-label");
      handle.setAttribute("aria-label", label?.textContent || "picture");
    }
    for (const button of document.querySelectorAll(
      ".widget-play button:not([aria-label])")) {
      const icon = button.querySelector("[class*='fa-']")?.classList ?? [];
      const kind = [...icon].map(c => BUTTONS[c.replace("fa-", "")]).find(Boolean);
      if (kind) button.setAttribute("aria-label", kind);
    }
  };
  new MutationObserver(name).observe(document.documentElement,
    {childList: true, subtree: true});
})();
