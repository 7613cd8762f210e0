"use strict";
// The key of a personal link. Without this script it is pasted by hand.

const enter = document.getElementById("enter");
if (enter && location.hash.length > 1) {
  enter.elements.key.value = decodeURIComponent(location.hash.slice(1));
  history.replaceState(null, "", location.pathname);  // The link does not stay in the history.
  enter.submit();
}
