"""A probe's run: its config and command line, what is read to go on with it, and what is kept of its result."""
