"""Tables are written: planned to the byte, block by block, resumable."""
