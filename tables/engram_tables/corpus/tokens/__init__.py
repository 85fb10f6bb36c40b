"""Token ids of documents: the encoder, and the store that keeps them on disk."""
