/**
 * Elements from names, attributes and children.
 *
 * A string becomes a text node and nothing else, so what a model or a person wrote is never markup. A function among the
 * attributes listens to the event of its name; false and null leave an attribute out.
 */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

let counted = 0;

/** An id that no other element has. */
export function newId(name) {
  counted += 1;
  return `${name}-${counted}`;
}

/** Tell a person who does not see the page what has happened. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}
