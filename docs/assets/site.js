// Typeset the mathematics of a page; KaTeX lies beside this file, nothing is fetched.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const written = element.textContent.trim();
    const displayMode = written.startsWith("\\[");
    const formula = written.slice(2, -2);
    // On a phone equations that stand side by side stand below each other.
    const parts = displayMode && innerWidth < 720 ? formula.split("\\qquad") : [formula];
    element.replaceChildren(
      ...parts.map((part) => {
        const place = document.createElement("span");
        katex.render(part, place, { displayMode, throwOnError: false });
        return place;
      }),
    );
  }
});
