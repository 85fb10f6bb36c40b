"""Bundles: the rows of frequent n-grams, laid together and found by key."""
