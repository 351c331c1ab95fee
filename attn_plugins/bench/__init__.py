"""Peers side by side in one process: attention alone, and a whole training step."""
