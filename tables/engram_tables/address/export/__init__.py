"""Specs written for programs that cannot import Python."""
