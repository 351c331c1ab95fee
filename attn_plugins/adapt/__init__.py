"""A pretrained backbone becomes sparse: :mod:`.calibrate` fits a factor on the scores of every head."""
