"""What does a table know? N-grams, tables and vocabularies, looked at cheaply."""
