"""Fixtures of the report's tests: small workspaces."""

from small_workspace import fill_workspace, new_workspace, reported, small_workspace

__all__ = ["fill_workspace", "new_workspace", "reported", "small_workspace"]
