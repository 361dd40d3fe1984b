"""The command line: a table of sub-commands, their flags, and exit codes."""
