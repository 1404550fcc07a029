"""Send a job to a Ray cluster through its Jobs server, follow its log, and end with its exit code.

    firnline submit --address http://127.0.0.1:8265 run s3://bucket/archive s3://bucket/workspace --config mine.yaml

The server is `--address` or RAY_API_SERVER_ADDRESS; its token comes from RAY_AUTH_TOKEN_PATH, RAY_AUTH_TOKEN or
~/.ray/auth_token. Firnline's own code and the content of --config are sent, and nothing else of this machine. Ctrl-C
stops following, not the job.

flags of submit (before or after JOB; all others are the job's):
  --address URL    the Jobs server, http(s)://host:port
  --python PATH    the cluster's Python that has the locked packages (default: python)
"""

import asyncio
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs.command_line import JOBS, config_text, leave, run_job
from pipelines.config import PATH_KEYS, describe_keys, flatten, is_path, read_yaml, refuse_secrets
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.ray_private import quieten_jobs_client
from pipelines.runtime.ray_token import use_token_if_available
from pipelines.runtime.redaction import holds_secret, without_secrets

NOT_SUBMITTED = {"submit": "it is this command", "explore": "its page is served on this machine"}
PACKAGES = ("pipelines", "jobs")
UPLOAD_LIMIT_BYTES = 512 << 20
"""Largest working folder that a Jobs server accepts."""

SENT_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "MLFLOW_TRACKING_URI",
)
"""Addresses and regions, never credentials: a job's environment can be read in Ray's dashboard."""

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0
"""How long a Jobs server may take to accept a connection and to answer the first question."""

STARTING = "No available agent"
"""What a Jobs server says whose head has just started, or has lost the process that starts jobs."""

STARTING_SECONDS = 300.0
"""How long such a server is asked again."""

AGAIN_SECONDS = 5.0
"""How long to wait before each such question; the server itself waits a while before it says so."""

LOST_SECONDS = 600.0
"""How long a Jobs server may be unreachable before following ends."""

FOLLOW_SECONDS = 120.0
"""How long a log is followed before the server is asked for the job: a machine that is gone closes no connection."""

SAY_SECONDS = 60.0
"""How often that is said."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What is sent: the job, its command line as the nodes will read it, and notes for the person who sends it."""

    job: str
    words: list[str]
    config_text: str | None = None
    config_name: str = "config.yaml"
    notes: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline submit`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: firnline submit JOB ... [flags of JOB]\n\n{(__doc__ or '').strip()}")
        return 0 if words else 2
    return run_job("submit", [], [], lambda _: submit(words))


def submit(words: Sequence[str]) -> int:
    """Send the job and return its exit code."""
    own, rest = take_flags(words, ("address", "python"))
    address = own.get("address") or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        raise InputError("there is no Jobs server: give --address http://HOST:8265 or set RAY_API_SERVER_ADDRESS")
    if holds_secret(address):
        raise InputError(
            f"the Jobs server is {without_secrets(address)}, with a user name, password or query hidden here; give its "
            "token in RAY_AUTH_TOKEN_PATH instead"
        )
    if urlsplit(address).scheme not in ("http", "https"):
        raise InputError(f"--address is {address}; submit needs the Jobs server, http(s)://host:port")
    submission = prepare(rest)
    client = connect(address)
    kept = [name for name in SENT_VARIABLES if os.environ.get(name) and name not in sent_environment()]
    submission.notes.extend(f"{name} holds a user name, password or query and is not sent" for name in kept)
    for note in submission.notes:
        print(f"firnline submit: {note}", file=sys.stderr)
    with working_folder(submission) as folder:
        job_id = send(
            client,
            address,
            entrypoint=entrypoint(submission, own.get("python", "python")),
            runtime_env={"working_dir": str(folder), "env_vars": sent_environment()},
            metadata={"firnline_job": submission.job},
        )
    print(f"firnline submit: {submission.job} is {job_id} on {address}", file=sys.stderr)
    return follow(client, job_id, address)


def take_flags(words: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the values of the named flags, and the other words in order; InputError if a value is missing."""
    taken: dict[str, str] = {}
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in names:
            rest.append(word)
            continue
        following = value if equals else next(remaining, None)
        if following is None:
            raise InputError(f"--{name} needs a value")
        taken[name] = following
    return taken, rest


def prepare(words: Sequence[str]) -> Submission:
    """Check a job's command line on this machine and return it as the nodes will read it.

    Local paths become absolute, because on a node the job runs in one of Ray's folders. Raises InputError for an
    unknown job, an unreadable --config, or a URL with a password in it.
    """
    for word in words:
        value = word.partition("=")[2] if word.startswith("--") and "=" in word else word
        if "://" in value and holds_secret(value):
            raise InputError(
                f"{without_secrets(value)} holds a user name, password or query, hidden here, which Ray would show "
                "with the job; set variables such as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the nodes"
            )
    named, rest = take_flags(words, ("config", "mlflow"))
    if not rest:
        raise InputError("no JOB is given; firnline --help lists the jobs")
    job, *rest = rest
    if job not in JOBS:
        raise InputError(f"unknown job {job!r}; one of {', '.join(name for name in JOBS if name not in NOT_SUBMITTED)}")
    if job in NOT_SUBMITTED:
        raise InputError(f"{job} is not submitted: {NOT_SUBMITTED[job]}")
    paths, rest = take_flags(rest, PATH_KEYS)
    text = None
    if "config" in named:
        text = config_text(named["config"])
        content = read_yaml(text, name=named["config"])
        refuse_secrets(content)
        keys = set(PATH_KEYS) & {key for key, _, _ in describe_keys(job)}
        paths = {key: value for key, value in flatten(content) if key in keys and isinstance(value, str)} | paths
    sent: list[str] = []
    notes: list[str] = []

    def on_the_nodes(path: str) -> str:
        # ~ is the home folder of the user who runs the job on the node.
        if "://" in path or path.startswith("~"):
            return path
        absolute = os.path.abspath(path)  # noqa: PTH100 - symbolic links are the nodes' to follow
        notes.append(f"{absolute} must exist on the nodes, as on a shared file system")
        return absolute

    after_flag = False
    for word in rest:
        is_location = not word.startswith("--") and not after_flag
        after_flag = word.startswith("--") and "." in word and "=" not in word
        sent.append(on_the_nodes(word) if is_location else word)
    for key, value in paths.items():
        sent += [f"--{key}", on_the_nodes(value) if is_path(value) else value]
    if "mlflow" in named:
        sent += ["--mlflow", named["mlflow"]]
    name = Path(named["config"]).name if "config" in named else "config.yaml"
    return Submission(job=job, words=sent, config_text=text, config_name=name, notes=notes)


def sent_environment() -> dict[str, str]:
    """Return the variables that a job gets from this process: endpoints and region, no credentials."""
    values = {name: os.environ[name] for name in SENT_VARIABLES if os.environ.get(name)}
    return {name: value for name, value in values.items() if not holds_secret(value)}


def entrypoint(submission: Submission, python: str) -> str:
    """Return the command line that the cluster runs."""
    words = [python, "-m", f"jobs.{submission.job}", *submission.words]
    if submission.config_text is not None:
        words += ["--config", submission.config_name]
    return shlex.join(words)


@contextmanager
def working_folder(submission: Submission) -> Iterator[Path]:
    """Yield a folder with Firnline's code and the configuration, which is all that is sent."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="firnline-submit-") as name:
        folder = Path(name)
        for package in PACKAGES:
            shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        for patterns in (".gitignore", ".rayignore"):
            if (root / patterns).is_file():
                shutil.copy(root / patterns, folder)
        if submission.config_text is not None:
            (folder / submission.config_name).write_text(submission.config_text, encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if size > UPLOAD_LIMIT_BYTES:
            raise InputError(f"the code in {root} has {size >> 20} MiB; at most {UPLOAD_LIMIT_BYTES >> 20} can be sent")
        yield folder


def connect(address: str) -> Any:
    """Return a client of the Jobs server; InputError if it does not answer or refuses our token."""
    use_token_if_available()
    # Ray's client would prefer both variables to the given address.
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    quieten_jobs_client()
    verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
    try:
        # Ray's client would wait for ever; any answer will do here.
        requests.get(f"{address.rstrip('/')}/api/version", timeout=(CONNECT_SECONDS, ANSWER_SECONDS), verify=verify)
        client: Any = JobSubmissionClient(address, verify=verify)
        client.list_jobs()
    except AuthenticationError:
        raise InputError(
            f"the Jobs server {address} refuses the token; set RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
        ) from None
    except (OSError, RuntimeError) as error:
        raise InputError(f"the Jobs server {address} does not answer: {_reason(error)}") from None
    return client


def _reason(error: Exception) -> str:
    """Return why a server does not answer in a few words: of a request, the innermost cause."""
    import requests

    if isinstance(error, requests.Timeout):
        return "no answer in time"
    found = re.search(r"\[(?:Errno -?\d+|SSL: \w+)\] [^\"')(]+", str(error))
    if found is not None:
        return found[0].strip()
    return "no HTTP" if isinstance(error, requests.ConnectionError) else str(error).splitlines()[0]


def send(
    client: Any, address: str, *, patience: float = STARTING_SECONDS, pause: float = AGAIN_SECONDS, **job: Any
) -> str:
    """Submit a job and return its id; a head that has just started is given time until it can start jobs.

    Args:
        client: of the Jobs server.
        address: of the Jobs server, for messages.
        patience: seconds after which a head that still starts is given up.
        pause: seconds between two questions.
        job: what `submit_job` of the client takes.

    Raises:
        StageFailed: the server refuses the job, or cannot start jobs for too long.
    """
    began = time.monotonic()
    while True:
        try:
            job_id: str = client.submit_job(**job)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if STARTING not in reason:
                raise StageFailed(f"the Jobs server {address} does not take the job: {reason}") from None
            waited = time.monotonic() - began
            if waited > patience:
                raise StageFailed(
                    f"the Jobs server {address} has started no job for {waited:.0f} s; look at `ray status` and "
                    "dashboard_agent.log on the head, or start the cluster again"
                ) from None
            print(f"firnline submit: waiting for the head of {address}, which still starts", file=sys.stderr)
            time.sleep(pause)
        else:
            return job_id


def follow(client: Any, job_id: str, address: str) -> int:
    """Print a job's log as it grows and return its exit code; wait for a Jobs server that is away for a while.

    Raises:
        StageFailed: the server stays away, or was started again and knows nothing of the job.
    """
    from ray.job_submission import JobStatus

    log = FollowedLog()
    last_answer = said = time.monotonic()
    try:
        while True:
            try:
                info = client.get_job_info(job_id)
                asyncio.run(log.follow(client, job_id))
                info = client.get_job_info(job_id)
                if info.status.is_terminal():
                    log.add(client.get_job_logs(job_id), at=0)
                    break
                last_answer = time.monotonic()
            except (OSError, RuntimeError) as error:
                now = time.monotonic()
                if _is_unknown(error, job_id):
                    raise StageFailed(
                        f"the Jobs server {address} does not know {job_id} any more, since its head was started again; "
                        "run the same command again to continue"
                    ) from None
                if now - last_answer > LOST_SECONDS:
                    raise StageFailed(
                        f"the Jobs server {address} has not answered for {LOST_SECONDS:g} s, perhaps {job_id} is lost: "
                        f"{error}"
                    ) from None
                if now - said >= SAY_SECONDS:
                    said = now
                    print(
                        f"firnline submit: waiting for the Jobs server {address}, which does not answer",
                        file=sys.stderr,
                        flush=True,
                    )
            time.sleep(1)
    except KeyboardInterrupt:
        print(
            f"firnline submit: {job_id} continues; `ray job logs -f {job_id}` follows it again, "
            f"`ray job stop {job_id}` stops it",
            file=sys.stderr,
        )
        return 130
    if info.status == JobStatus.SUCCEEDED:
        return 0
    print(
        f"firnline submit: {job_id} {str(info.status).lower()}: {(info.message or '').partition(',')[0]}",
        file=sys.stderr,
    )
    if info.status == JobStatus.STOPPED:
        return 130
    # A job without an exit code did not run: its node or its environment failed.
    return 1 if info.driver_exit_code in (None, 0) else int(info.driver_exit_code)


def _is_unknown(error: Exception, job_id: str) -> bool:
    """Return whether a Jobs server that answers says that there is no such job."""
    return "status code 404" in str(error) and job_id in str(error)


class FollowedLog:
    """Prints a job's log, each character once, however often the connection is lost."""

    def __init__(self) -> None:
        self.printed = 0

    def add(self, text: str, *, at: int) -> None:
        """Print what is new in `text`, which starts at character `at` of the log."""
        fresh = text[max(0, self.printed - at) :]
        sys.stdout.write(fresh)
        sys.stdout.flush()
        self.printed = max(self.printed, at + len(text))

    async def follow(self, client: Any, job_id: str, *, seconds: float = FOLLOW_SECONDS) -> None:
        """Print the log until the job has ended, the connection is lost, or so many seconds have passed."""
        position = 0
        # A connection breaks in many ways; whether the job goes on is asked of the server.
        with suppress(Exception):
            async with asyncio.timeout(seconds):
                async for text in client.tail_job_logs(job_id):
                    self.add(text, at=position)
                    position += len(text)


if __name__ == "__main__":
    leave(main())
