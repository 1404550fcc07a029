"""The `firnline` command: finds the job, resolves its configuration, and turns errors into exit codes.

    firnline detect ARCHIVE WORKSPACE --config configs/neumayer.yaml --detection.on 4

is the same as `python -m jobs.detect ARCHIVE WORKSPACE ...`.
"""

import atexit
import importlib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pipelines import __version__
from pipelines import config as configuration
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.redaction import holds_secret, scrub, without_secrets
from pipelines.runtime.signals import sigterm_interrupts
from pipelines.runtime.text import printable
from pipelines.workspace.holder import held
from pipelines.workspace.replacement import finish_replacements
from pipelines.workspace.workspace import Workspace, open_workspace

JOBS = {
    "synthesize": "write a synthetic archive with its truth",
    "fetch": "download recordings from an FDSN service",
    "detect": "find events in the archive by STA/LTA",
    "tune": "search for the best augmentations",
    "train": "learn features of the events (SimCLR)",
    "label": "embed, cluster and label every event",
    "report": "write figures and the catalogue",
    "suggest": "write down which events to label next",
    "explore": "browse events and label them by hand",
    "compare": "compare labelling runs side by side",
    "status": "show progress, coverage and failures of detection",
    "run": "detect, train, label and report in one go",
    "submit": "send a job to a Ray cluster",
}

REPLACES = {
    "synthesize": "remove an archive that has other settings first",
    "fetch": "download again what the archive holds already",
    "detect": "detect again; the old events, and all that is derived from them, stay until the new ones are ready",
    "train": "train again; the old encoder stays until the new one is ready",
    "label": "label again with other settings; the old labels stay until the new ones are ready",
    "report": "write report and catalogue again; the old ones stay until the new ones are ready",
    "run": "make the results of other settings again, from the first stage whose settings differ",
}
"""What --replace does, for the jobs that have it."""


INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM; the same command continues."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """A job's parsed command line.

    Attributes:
        positional: ARCHIVE, WORKSPACE... as given.
        flags: dotted configuration keys and their texts, in order.
        file: nested mapping of --config ({} without one).
        mlflow: --mlflow.
        address: --address.
        replace: --replace.
        switches: further switches of the job that were given.
        command: the whole command line, as another job is told it.
        until_end: what is undone when the job ends.
    """

    positional: list[str]
    flags: list[tuple[str, str]] = field(default_factory=list)
    file: dict[str, Any] = field(default_factory=dict)
    mlflow: str | None = None
    address: str | None = None
    replace: bool = False
    switches: frozenset[str] = frozenset()
    command: str = "firnline"
    until_end: ExitStack = field(default_factory=ExitStack)

    def config(self, stage: str, workspace: Workspace | None = None) -> configuration.Config:
        """Resolve a stage's configuration: defaults < stored in the workspace < --config < flags."""
        stored = workspace.stored_config(stage) if workspace is not None else {}
        return configuration.resolve(stored, self.file, configuration.read_flags(self.flags))

    def join_cluster(self) -> bool:
        """Join the cluster that --address names, or that this job runs on, until the job's end; False without one.

        Whether it is large enough can then be told before the archive is listed.
        """
        from pipelines.runtime.ray_session import in_ray_job, ray_session

        if self.address is None and not in_ray_job():
            return False
        self.until_end.enter_context(ray_session(self.address))
        return True

    def workspace(
        self, position: int, *, create: bool = False, write: bool = True, hold: bool | None = None
    ) -> Workspace:
        """Open the workspace that a positional argument names; `create` and `write` are those of `open_workspace`.

        A job that writes holds it until its end; InputError where another job does. `hold` False leaves that out.
        """
        workspace = open_workspace(self.positional[position], create=create, write=write)
        if write if hold is None else hold:
            self.until_end.enter_context(held(workspace.store, self.command))
            finish_replacements(workspace.store)
        return workspace


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline JOB ...` and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: firnline JOB ...\n\njobs (firnline JOB --help tells more):")
        for name, what in JOBS.items():
            print(f"  {name:<11} {what}")
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"firnline {__version__}")
        return 0
    if argv[0] not in JOBS:
        print(f"firnline: unknown job {argv[0]!r}; one of {', '.join(JOBS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"jobs.{argv[0]}")
    code: int = module.main(argv[1:])
    return code


def run() -> NoReturn:
    """Be the `firnline` command."""
    try:
        code = main()
    except KeyboardInterrupt:
        print("firnline: interrupted", file=sys.stderr)
        code = INTERRUPTED
    leave(code)


def leave(code: int) -> NoReturn:
    """End the process with a job's exit code.

    If a process is interrupted while Ray starts, Ray's threads can crash when the interpreter shuts down (a
    segmentation fault in one of ten cases). Such a process runs its exit handlers, which stop Ray, and exits at once.
    """
    if code != INTERRUPTED:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_job(
    job: str,
    positional: Sequence[str],
    argv: Sequence[str] | None,
    body: Callable[[Arguments], int | None],
    *,
    switches: Mapping[str, str] | None = None,
) -> int:
    """Parse a job's command line, run its body, and return the exit code of the contract.

    Args:
        job: its name, one of JOBS.
        positional: names of its arguments; if the last ends in `...`, it takes one or more.
        argv: the command line after the job's name; default: the process's.
        body: does the work; returns an exit code or None for 0.
        switches: further flags without a value, with their help.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    switches = switches or {}
    if "-h" in argv or "--help" in argv:
        print(usage(job, positional, switches))
        return 0
    try:
        with sigterm_interrupts():
            arguments = parse(job, positional, argv, switches)
            if arguments.address is not None:
                from pipelines.runtime.ray_session import check_address

                check_address(arguments.address)
            with arguments.until_end:
                return body(arguments) or 0
    except InputError as error:
        print(scrub(f"firnline {job}: {_shown(error)}"), file=sys.stderr)
        return 2
    except StageFailed as error:
        print(scrub(f"firnline {job}: {_shown(error)}"), file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Exception) as error:
        # If a class is being created, Python 3.11 turns the interrupt into the cause of another error.
        if isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt):
            print(f"firnline {job}: interrupted; run the same command again to continue", file=sys.stderr)
            return INTERRUPTED
        print(scrub(traceback.format_exc()), file=sys.stderr)
        return 1


def _shown(error: Exception) -> str:
    """Return an error's text; what it quotes of files and headers does nothing to a terminal."""
    return "\n".join(printable(line) for line in str(error).split("\n"))


def parse(job: str, positional: Sequence[str], argv: Sequence[str], switches: Mapping[str, str]) -> Arguments:
    """Parse a job's command line.

    Raises:
        InputError: a missing or superfluous argument, an unknown flag, a flag without its value, an unreadable file.
    """
    values: list[str] = []
    flags: list[tuple[str, str]] = []
    plain: dict[str, str] = {}
    given: set[str] = set()
    staged = job in configuration.STAGE_SECTIONS
    known = {key for key, _, _ in configuration.describe_keys(job)} if staged else set()
    words = iter(argv)
    for word in words:
        if not word.startswith("--") or word == "--":
            values.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if name == "replace" and job not in REPLACES:
            raise InputError(f"--replace has no effect on {job}; leave it out")
        if name == "replace" or name in switches:
            if equals:
                raise InputError(f"--{name} takes no value, but {value!r} was given; leave the flag out to turn it off")
            given.add(name)
            continue
        if not equals:
            following = next(words, None)
            if following is None:
                raise InputError(f"--{name} needs a value")
            value = following
        if name in ("config", "mlflow", "address"):
            plain[name] = value
        elif "." in name:
            if staged and name not in known:
                raise InputError(f"unknown configuration key {name} for {job}; firnline {job} --help lists them")
            flags.append((name, value))
        else:
            raise InputError(f"unknown flag --{name}; firnline {job} --help lists the flags")
    for value in values:
        if "://" in value and holds_secret(value):
            raise InputError(
                f"{without_secrets(value)} holds a user name, password or query; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or a profile, instead"
            )
    many = bool(positional) and positional[-1].endswith("...")
    if len(values) < len(positional) or (len(values) > len(positional) and not many):
        raise InputError(f"expects {' '.join(positional) or 'no argument'}, got {' '.join(values) or 'nothing'}")
    return Arguments(
        positional=values,
        flags=flags,
        file=read_config_file(plain["config"]) if "config" in plain else {},
        mlflow=plain.get("mlflow"),
        address=plain.get("address"),
        replace="replace" in given,
        switches=frozenset(given - {"replace"}),
        command=scrub(shlex.join(["firnline", job, *argv])),
    )


def read_config_file(path: str) -> dict[str, Any]:
    """Read --config; InputError names a file that is missing, too large or not YAML."""
    return configuration.read_yaml(config_text(path), name=path)


def config_text(path: str) -> str:
    """Return the text of --config; InputError if it is not a file or is too large to be read as YAML."""
    file = Path(path)
    try:
        if file.exists() and not file.is_file():
            raise InputError(f"the configuration file {path} is not a file")
        with file.open("rb") as stream:
            # One byte more than is read as YAML, which then refuses it.
            return stream.read(configuration.MAX_YAML_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"the configuration file {path} cannot be read: {reason}") from None


def usage(job: str, positional: Sequence[str], switches: Mapping[str, str]) -> str:
    """Return the text of `firnline JOB --help`, with every key, its default and what it means."""
    lines = [f"usage: firnline {job} {' '.join(positional)} [--config FILE.yaml] [--section.key VALUE ...]", ""]
    module = sys.modules.get(f"jobs.{job}") or sys.modules.get("__main__")
    if module is not None and module.__doc__:
        lines += [module.__doc__.strip(), ""]
    lines += [
        "flags:",
        "  --config FILE.yaml      configuration file (sections as below)",
        "  --mlflow URI            MLflow tracking URI (default: MLFLOW_TRACKING_URI, else inside a local workspace)",
        "  --address ADDRESS       Ray cluster (default: one started in this process)",
        *(["  --replace               " + REPLACES[job]] if job in REPLACES else []),
        *(f"  --{name:<22}{what}" for name, what in switches.items()),
        "",
    ]
    keys = list(configuration.describe_keys(job)) if job in configuration.STAGE_SECTIONS else []
    if keys:
        lines.append("configuration keys (defaults < workspace < file < flags; values are YAML):")
        for key, default, text in keys:
            lines.append(f"  --{key} ({default})\n        {text}")
    return "\n".join(lines)


def print_config(config: configuration.Config, stage: str, workspace: Workspace | None = None) -> None:
    """Print the keys of a stage's resolved configuration that differ from the defaults, and where all of it is.

    Without a workspace (synthesize, fetch) nothing stores the configuration, so the line points to --help.
    """
    defaults = dict(configuration.flatten(configuration.stage_config(configuration.Config(), stage)))
    resolved = configuration.flatten(configuration.stage_config(config, stage))
    changed = [(key, value) for key, value in resolved if key not in defaults or defaults[key] != value]
    where = (
        f"firnline {stage} --help lists all keys"
        if workspace is None
        else f"all keys are in {workspace.store.full(f'config/{stage}.yaml')}"
    )
    print(f"{stage}: " + (f"settings that differ from the defaults ({where}):" if changed else f"defaults ({where})"))
    for key, value in changed:
        # JSON's spelling of numbers, lists and null is YAML's on one line.
        print(f"    {key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    run()
