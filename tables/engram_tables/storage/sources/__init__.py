"""Tables as others keep them: checkpoints, GGUF files, sidecars and raw rows, read where they lie."""
