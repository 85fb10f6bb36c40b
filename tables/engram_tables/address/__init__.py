"""Which row does an n-gram own? Vocabularies, specs, recipes and hashing; knows no bytes."""
