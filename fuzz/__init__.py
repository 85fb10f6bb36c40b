"""Coverage-guided fuzzing of the parsers of foreign bytes; as `python -m fuzz.safetensors -max_total_time=120`."""
