"""The name that pickles of release 0.1 hold for ``attn_plugins.codebases``; it goes with the next release."""
