"""The small workspace, for tests that need labels and no Ray."""

from small_workspace import fill_workspace, new_workspace

__all__ = ["fill_workspace", "new_workspace"]
