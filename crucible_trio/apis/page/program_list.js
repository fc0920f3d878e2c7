// Shows the programs of programs.js, each with a button that copies it.

import { codeBlock } from "./nodes.js";
import { programs } from "./programs.js";

export function showIn(parent, facts) {
  const blocks = Object.entries(programs(facts)).map(([name, text]) => {
    const block = codeBlock(name, "Copy", text);
    block.setAttribute("role", "group");
    block.setAttribute("aria-label", name);
    return block;
  });
  parent.replaceChildren(...blocks);
}
