// Keeps the end of a growing element in view, until the user scrolls up.

const NEAR = 40; // pixels

// Returns a function to call after each change. `button` brings the user back to the end.
export function follow(element, button) {
  let isFollowing = true;
  let top = 0;

  const toEnd = () => {
    element.scrollTop = element.scrollHeight;
    top = element.scrollTop;
  };

  element.addEventListener("scroll", () => {
    // The element also scrolls when its text grows or a part of it folds. Only the user scrolls up, away from the end.
    const isNear = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR;
    if (isNear) isFollowing = true;
    else if (element.scrollTop < top) isFollowing = false;
    top = element.scrollTop;
    button.hidden = isFollowing;
  });

  button.addEventListener("click", () => {
    isFollowing = true;
    button.hidden = true;
    toEnd();
  });

  return (isForced = false) => {
    if (isForced) isFollowing = true;
    if (isFollowing) toEnd();
    button.hidden = isFollowing;
  };
}
