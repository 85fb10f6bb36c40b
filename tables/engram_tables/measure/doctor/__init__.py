"""What of a machine will fail or slow a table down, before it does: it looks and tries, and never sets anything."""
