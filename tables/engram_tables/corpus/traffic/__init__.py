"""Which keys and rows a token stream looks up, and how that falls on the rows."""
