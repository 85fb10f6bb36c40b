"""The parts of `engram bench-offload`: what is looked up, how it is timed, and what a point of its record says."""
