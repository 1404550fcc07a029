"""Firnline: years of continuous seismic recordings become a labelled event catalogue."""

import os

# OpenMP's threads spin while they wait for each other. Where another process holds a core, that takes most of the time:
# they sleep instead. OpenMP reads this when it is loaded, so it is set before any module imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
