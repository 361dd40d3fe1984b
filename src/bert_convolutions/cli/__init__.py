"""The command line: one short file a sub-command."""
