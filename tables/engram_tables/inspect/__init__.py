"""What a table knows: its rows, their owners and faults, what an n-gram finds there, and what a vocabulary folds."""
