"""One file a command, each one library call between parsing and printing."""
