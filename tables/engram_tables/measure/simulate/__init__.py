"""What a cache would do for a text: streams of lookups, their curves, and what is worth keeping."""
