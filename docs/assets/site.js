// Typeset the mathematics of a page; KaTeX lies beside this file, nothing is fetched.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const written = element.textContent.trim();
    const displayMode = written.startsWith("\\[");
    const formula = written.slice(2, -2);
    // On a phone equations that stand side by side stand below each other.
    const parts = displayMode && innerWidth < 720 ? formula.split("\\qquad") : [formula];
    element.replaceChildren(...parts.map((part) => typeset(part, displayMode)));
  }
  // With the fonts there, widths are known: an equation too wide for the screen goes on below, from its second = on; one
  // that still is too wide breaks behind + - and the like.
  document.fonts.ready.then(() => {
    for (const place of document.querySelectorAll("div.arithmatex > span")) {
      if (wide(place)) place.replaceChildren(...equal(place.formula).map((line) => typeset(line, true)));
      for (const line of wide(place) ? place.children : []) {
        const smaller = line.formula.replace(/\\(left|right)(?![a-z])/g, (_, side) => (side === "left" ? "\\Bigl" : "\\Bigr"));
        if (wide(line)) line.replaceChildren(typeset(`\\displaystyle ${smaller}`, false));
      }
    }
  });
});
function typeset(formula, displayMode) {
  const place = document.createElement("span");
  katex.render(formula, place, { displayMode, throwOnError: false });
  place.formula = formula;
  return place;
}
function wide(place) {
  const room = place.closest("div.arithmatex").clientWidth;
  return [...place.querySelectorAll(".katex-html")].some((html) => html.scrollWidth > room || html.getBoundingClientRect().width > room);
}
function equal(formula) {
  const lines = [""];
  let depth = 0;
  for (const sign of formula) {
    depth += "([{".includes(sign) - ")]}".includes(sign);
    if (sign === "=" && depth === 0 && lines.at(-1).includes("=")) lines.push("");
    lines[lines.length - 1] += sign;
  }
  return lines;
}

// Where lines end: not inside an option, `--like-this`, or an abbreviation; inside what is long behind a slash, a dot and the like.
document.addEventListener("DOMContentLoaded", () => {
  const texts = document.evaluate("//article//*[self::code or self::td or self::h1]//text()", document, null, 7);
  for (let number = 0; number < texts.snapshotLength; number++) {
    const text = texts.snapshotItem(number);
    const pieces = text.data.split(/(?<!\S)(-\S{1,23}|\S{25,}|\([A-Z]+-[A-Z]+\))(?!\S)/);
    if (pieces.length < 2 || text.parentElement.closest(".katex, .language-text:not(.lines) pre")) continue;
    text.replaceWith(
      ...pieces.flatMap((piece, place) => {
        if (place % 2 === 0) return [piece];
        const ends = piece.startsWith("-") ? [piece] : piece.match(piece.includes("/") ? /[^/.]+[/.]*|[/.]+/g : /[^._=,:]+[._=,:]*|[._=,:]+/g);
        return ends.flatMap((end) => {
          const whole = Object.assign(document.createElement("span"), { className: "whole", textContent: end });
          return [whole, document.createElement("wbr")];
        });
      }),
    );
  }
});
