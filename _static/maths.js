/* MathJax comes when it is needed: once a formula is near, with the first scroll, key
   or touch, and for print. It is the largest file of a page. */
addEventListener("DOMContentLoaded", () => {
  const late = document.querySelector('script[type="text/late"]');
  const formulas = document.querySelectorAll(".math");
  if (!late || !formulas.length) return;
  const signs = ["scroll", "pointerdown", "keydown", "touchstart", "beforeprint"];
  const near = new IntersectionObserver(
    seen => seen.some(one => one.isIntersecting) && fetchIt(),
    {rootMargin: "50%"},
  );
  const fetchIt = () => {
    near.disconnect();
    for (const sign of signs) removeEventListener(sign, fetchIt);
    const script = document.createElement("script");
    for (const {name, value} of late.attributes)
      if (name !== "type") script.setAttribute(name, value);
    late.replaceWith(script);
  };
  for (const formula of formulas) near.observe(formula);
  for (const sign of signs) addEventListener(sign, fetchIt, {passive: true});
});
