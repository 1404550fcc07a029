"""Fixtures of the explorer's tests: small workspaces."""

from small_workspace import fill_workspace, new_workspace, small_workspace

__all__ = ["fill_workspace", "new_workspace", "small_workspace"]
