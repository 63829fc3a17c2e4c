/* A page opened from a search goes to the first of the words found. */
addEventListener("load", () => setTimeout(() => {
  const word = document.querySelector(".bd-article span.highlighted");
  if (word && !location.hash) word.scrollIntoView({block: "center"});
}, 100));
