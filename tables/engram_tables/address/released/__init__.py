"""Specs from what people hold of a released model: configs, checkpoints, GGUF files."""
