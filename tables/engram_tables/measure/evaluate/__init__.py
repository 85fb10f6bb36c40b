"""What a next-token table says about held-out text, beside the exact counts that it was made of."""
