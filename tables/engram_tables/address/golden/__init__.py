"""Golden vectors: what a spec's rows must be, and what another program made of them."""
