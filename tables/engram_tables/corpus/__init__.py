"""Which n-grams does the text hold? Readers, tokens and counts; knows no tables."""
