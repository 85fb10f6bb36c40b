"""Rows that hold the raw tokens which follow an n-gram: places, kernels, reading, and a manifest's entry."""
