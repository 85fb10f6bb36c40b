"""Tables written as the files of others: checkpoints, GGUF, raw rows."""
