// A button that copies a text.

export function copyButton(name, text) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "copy", textContent: name });
  button.addEventListener("click", async () => {
    const done = await copy(text());
    button.textContent = done ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = name), 1500);
  });
  return button;
}

// Browsers give `navigator.clipboard` only to pages of this machine and of HTTPS.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "unseen" });
    const focused = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}
