"""Attention as many codebases write it, in a few lines each, and an independent reference for every one."""
