"""The ways in which records reach the caller's buffer, behind one call. No clock, and no table's manners."""
