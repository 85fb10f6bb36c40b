"""Records as one page: what was counted, simulated, planned, measured and judged, drawn side by side."""
