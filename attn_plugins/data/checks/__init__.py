"""The checks behind ``attn_plugins.data.check``, one file per kind of data set."""
