"""The two ways a job fails, which `jobs.command_line` turns into exit codes, and how an error is recorded."""

from pipelines.runtime.redaction import scrub


class InputError(Exception):
    """A mistake found before work starts: usage, configuration, input, workspace, MLflow.

    Its text is one sentence that names the key or file, the value, and what would be right. Exit code 2.
    """


class StageFailed(Exception):
    """A shard or step failed after its retries; the text names it. Exit code 1."""


def last_line(error: BaseException) -> str:
    """Return the last line of an error's text, which says what it was; its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def describe(error: BaseException) -> str:
    """Return an error's type and text on one line without secrets, for a ledger or a result that is reported later."""
    return scrub(f"{type(error).__name__}: {' '.join(str(error).split())}")
