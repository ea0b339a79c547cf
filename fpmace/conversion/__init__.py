"""Models of other packages brought into fpmace, and training started from them."""
