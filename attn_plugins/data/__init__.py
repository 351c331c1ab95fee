"""Built-in rendered scenes, writers of real data set layouts, and the check of a data root."""
