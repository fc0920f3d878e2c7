// Imports a module of the page that imports no other. Node takes a `.js` file for an old kind of module, so it gets the
// text.

import { readFileSync } from "node:fs";

export function load(name) {
  const text = readFileSync(`${process.env.PAGE_FOLDER}/${name}`);
  return import(`data:text/javascript;base64,${text.toString("base64")}`);
}
