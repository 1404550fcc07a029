"""Firnline: years of continuous seismic recordings become a labelled event catalogue."""

__version__ = "0.1.0"
