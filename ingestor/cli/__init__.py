"""The command line: one file per command or family of commands. Nothing else in the package prints."""
