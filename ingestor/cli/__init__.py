"""The command line: one file a command. Nothing else in the package prints."""
