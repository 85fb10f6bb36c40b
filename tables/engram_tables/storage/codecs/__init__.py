"""How a row's values become its record's bytes, and how far they come back."""
