"""What did it cost? Timing, environment, ceilings and benchmarks."""
