"""Memory in front of an engine: hot rows of a byte budget, with the same bytes as behind it. No clocks, no terminal."""
