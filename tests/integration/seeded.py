"""Run a script with Python's own random numbers seeded, which DINO's augmentations draw from and DINO does not seed."""

import random
import runpy
import sys

random.seed(0)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
