// Typeset the mathematics of a page; KaTeX lies beside this file, nothing is fetched.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const written = element.textContent.trim();
    katex.render(written.slice(2, -2), element, { displayMode: written.startsWith("\\["), throwOnError: false });
  }
});
