"""A run of a script: its command line, configuration, folder, machine and processes."""
