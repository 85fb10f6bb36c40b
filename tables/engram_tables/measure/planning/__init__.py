"""Whether a machine can feed a model from a table: arithmetic over figures that say where they come from."""
