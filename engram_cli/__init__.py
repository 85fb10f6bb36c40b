"""The command line of Engram Tables: parse, call one library function, print."""
