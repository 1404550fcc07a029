"""The two ways a job ends badly; `jobs.command_line` turns them into exit codes."""


class InputError(Exception):
    """A mistake found before work starts: usage, configuration, input, workspace, MLflow.

    Its text is one sentence that names the key or file, the value, and what would be right. Exit code 2.
    """


class StageFailed(Exception):
    """A shard or step failed after its retries; the text names it. Exit code 1."""
