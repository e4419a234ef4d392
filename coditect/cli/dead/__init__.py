"""`coditect dead`: list, show, redrive and discard dead letters and the nodes that were given up."""
