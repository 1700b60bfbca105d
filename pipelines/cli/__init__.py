"""The command line: parse, call one function, tell."""
