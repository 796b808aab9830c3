// The original's equations, as MathML.

import { make } from "./dom.js";

export const EQUATIONS = (() => {
  const MATHML = "http://www.w3.org/1998/Math/MathML";

  function math(tag, ...children) {
    const node = document.createElementNS(MATHML, tag);
    node.append(...children.flat());
    return node;
  }

  const mi = (name, variant = null) => {
    const node = math("mi", name);
    if (variant) node.setAttribute("mathvariant", variant);
    return node;
  };
  const big = (sign) => math("mo", sign);
  const mo = (sign) => {
    const node = big(sign);
    if ("()|‖[]".includes(sign)) node.setAttribute("stretchy", "false");
    return node;
  };
  const space = () => {
    const node = math("mspace");
    node.setAttribute("width", "1.5em");
    return node;
  };
  const mn = (number) => math("mn", String(number));
  const row = (...children) => math("mrow", ...children);
  const sub = (base, index) => math("msub", base, index);
  const sup = (base, exponent) => math("msup", base, exponent);
  const root = (...children) => math("msqrt", ...children);
  const over = (top, bottom) => math("mfrac", top, bottom);

  const bold = (letter) => mi({ x: "𝐱", v: "𝐯", I: "𝐈", mu: "𝛍", eps: "𝛜" }[letter], "normal");
  const xt = () => sub(bold("x"), mi("t"));
  const xBefore = () => sub(bold("x"), row(mi("t"), mo("−"), mn(1)));
  const x0 = () => sub(bold("x"), mn(0));
  const beta = () => sub(mi("β"), mi("t"));
  const alpha = () => sub(mi("α"), mi("t"));
  const alphaBar = () => {
    const accent = math("mover", mi("α"), mo("¯"));
    accent.setAttribute("accent", "true");
    return sub(accent, mi("t"));
  };
  const normal = (...inside) => row(mi("𝒩", "normal"), mo("("), ...inside, mo(")"));
  const given = (name, what, condition) => row(name, mo("("), what, mo("|"), condition, mo(")"));
  const ofXt = (letter) => row(sub(bold(letter), mi("θ")), mo("("), xt(), mo(","), mi("t"), mo(")"));
  const signal = () => root(alphaBar());
  const noise = () => root(row(mn(1), mo("−"), alphaBar()));

  function equation(label, ...children) {
    const node = math("math", row(...children));
    node.setAttribute("display", "block");
    node.setAttribute("aria-label", label);
    return make("div", { class: "equation", tabindex: 0, role: "group", "aria-label": label }, node);
  }

  const hat = (letter) => {
    const node = math("mover", bold(letter), mo("^"));
    node.setAttribute("accent", "true");
    return node;
  };

  return {
    step: () =>
      equation(
        "q of x t given x t minus 1 is normal, with mean the square root of 1 minus beta t times x t minus 1, and variance beta t",
        given(mi("q"), xt(), xBefore()),
        mo("="),
        normal(xt(), mo(";"), root(row(mn(1), mo("−"), beta())), xBefore(), mo(","), beta(), bold("I")),
      ),
    product: () =>
      equation(
        "alpha t is 1 minus beta t; alpha bar t is the product of alpha s for s from 1 to t",
        alpha(),
        mo("="),
        mn(1),
        mo("−"),
        beta(),
        mo(","),
        space(),
        alphaBar(),
        mo("="),
        math("munderover", mo("∏"), row(mi("s"), mo("="), mn(1)), mi("t")),
        sub(mi("α"), mi("s")),
      ),
    jump: () =>
      equation(
        "q of x t given x 0 is normal, with mean the square root of alpha bar t times x 0, and variance 1 minus alpha bar t",
        given(mi("q"), xt(), x0()),
        mo("="),
        normal(xt(), mo(";"), root(alphaBar()), x0(), mo(","), mo("("), mn(1), mo("−"), alphaBar(), mo(")"), bold("I")),
      ),
    loss: () => {
      const node = equation(
        "the expectation over x 0 and epsilon of the squared norm of epsilon minus epsilon theta of x t and t, times a weight",
        math("msub", mi("𝔼", "normal"), row(x0(), mo(","), bold("eps"))),
        big("["),
        over(
          math("msubsup", mi("β"), mi("t"), mn(2)),
          row(mn(2), math("msubsup", mi("σ"), mi("t"), mn(2)), alpha(), mo("("), mn(1), mo("−"), alphaBar(), mo(")")),
        ),
        mo("‖"),
        bold("eps"),
        mo("−"),
        sub(bold("eps"), mi("θ")),
        mo("("),
        signal(),
        x0(),
        mo("+"),
        noise(),
        bold("eps"),
        mo(","),
        mi("t"),
        mo(")"),
        sup(mo("‖"), mn(2)),
        big("]"),
      );
      node.classList.add("long"); // needs smaller letters on a phone
      return node;
    },
    velocity: () =>
      equation(
        "v is the square root of alpha bar t times epsilon, minus the square root of 1 minus alpha bar t times x 0",
        bold("v"),
        mo("="),
        signal(),
        bold("eps"),
        mo("−"),
        noise(),
        x0(),
      ),
    guessFromVelocity: () =>
      equation(
        "x 0 hat is the square root of alpha bar t times x t, minus the square root of 1 minus alpha bar t times v theta",
        sub(hat("x"), mn(0)),
        mo("="),
        signal(),
        xt(),
        mo("−"),
        noise(),
        ofXt("v"),
      ),
    noiseFromVelocity: () =>
      equation(
        "epsilon theta is the square root of 1 minus alpha bar t times x t, plus the square root of alpha bar t times v theta",
        ofXt("eps"),
        mo("="),
        noise(),
        xt(),
        mo("+"),
        signal(),
        ofXt("v"),
      ),
    noiseFromPicture: () =>
      equation(
        "epsilon theta is x t minus the square root of alpha bar t times x theta, divided by the square root of 1 minus alpha bar t",
        ofXt("eps"),
        mo("="),
        over(row(xt(), mo("−"), signal(), ofXt("x")), noise()),
      ),
    guessItself: () => equation("x 0 hat is x theta of x t and t", sub(hat("x"), mn(0)), mo("="), ofXt("x")),
    back: () =>
      equation(
        "p theta of x t minus 1 given x t is normal, with mean mu theta of x t and t, and variance sigma t squared",
        given(sub(mi("p"), mi("θ")), xBefore(), xt()),
        mo("="),
        normal(
          xBefore(),
          mo(";"),
          sub(bold("mu"), mi("θ")),
          mo("("),
          xt(),
          mo(","),
          mi("t"),
          mo(")"),
          mo(","),
          math("msubsup", mi("σ"), mi("t"), mn(2)),
          bold("I"),
        ),
      ),
    mean: () =>
      equation(
        "mu theta is 1 over the square root of alpha t, times x t minus beta t over the square root of 1 minus alpha bar t times epsilon theta",
        sub(bold("mu"), mi("θ")),
        mo("("),
        xt(),
        mo(","),
        mi("t"),
        mo(")"),
        mo("="),
        over(mn(1), root(alpha())),
        big("("),
        xt(),
        mo("−"),
        over(beta(), noise()),
        ofXt("eps"),
        big(")"),
      ),
    guess: () =>
      equation(
        "x 0 hat is x t minus the square root of 1 minus alpha bar t times epsilon theta, divided by the square root of alpha bar t",
        sub(hat("x"), mn(0)),
        mo("="),
        over(row(xt(), mo("−"), noise(), ofXt("eps")), signal()),
      ),
    // letter: of what the network predicts
    guidance: (letter) =>
      equation(
        `${{ eps: "epsilon" }[letter] ?? letter} hat is the network's guess without a class, plus w times the difference of its guesses with the class c and without`,
        hat(letter),
        mo("="),
        sub(bold(letter), mi("θ")),
        mo("("),
        xt(),
        mo(")"),
        mo("+"),
        mi("w"),
        mo("("),
        sub(bold(letter), mi("θ")),
        mo("("),
        xt(),
        mo(","),
        mi("c"),
        mo(")"),
        mo("−"),
        sub(bold(letter), mi("θ")),
        mo("("),
        xt(),
        mo(")"),
        mo(")"),
      ),
  };
})();
