"""Pages for a browser, on one's own machine."""
