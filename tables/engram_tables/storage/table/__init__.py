"""A table directory of ours: what its files hold, and opening it."""
