"""Rows to a GPU: kernels, memory that both sides read, and the paths between them. Optional: needs CuPy."""
