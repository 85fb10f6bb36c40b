"""Exact counts of n-grams: counted in a memory budget, written, merged and looked into."""
