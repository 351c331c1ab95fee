"""The one error of this package."""

__all__ = ["CheckpointError"]


class CheckpointError(ValueError):
    """A file that cannot be trusted, understood, or used with the plugin spec asked for."""
