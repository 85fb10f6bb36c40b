"""What would a cache have held? Replays of accesses through policies. It knows no tables, corpora or clocks."""
