"""No secret of a URL or of the environment is shown, however it was written."""

import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs import command_line, submit
from pipelines.config import resolve
from pipelines.runtime.errors import InputError, describe
from pipelines.runtime.redaction import SECRET_VARIABLES, holds_secret, scrub, without_secrets

# A planted word between any characters: no other part of a URL holds it.
SECRETS = st.builds(
    lambda before, after: f"{before}PLANTED{after}",
    st.text(string.ascii_letters + string.digits + "/?#@:%&=+[]!", max_size=6),
    st.text(string.ascii_letters + string.digits + "/?#@:%&=+[]!", max_size=6),
)
URLS = (
    "https://{}@mlflow.example/path",
    "https://user:{}@mlflow.example:5000/path",
    "http://{}:@127.0.0.1:5000",
    "postgresql+psycopg2://user:{}@db.example/mlflow",
    "postgresql://db.example/mlflow?user=me&password={}",
    "postgresql://me:pw@db.example/mlflow?sslmode=require&password={}",
    "https://mlflow.example/path?{}",
    "https://mlflow.example/path#{}",
    "s3://KEY:{}@bucket/key",
    "s3://bucket/key?X-Amz-Signature={}",
    "user:{}@s3.example",
)


@pytest.mark.parametrize("form", URLS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(secret=SECRETS)
def test_no_part_of_a_url_that_may_be_secret_is_shown(form, secret):
    url = form.format(secret)
    assert "PLANTED" not in without_secrets(url)
    assert holds_secret(url)
    assert without_secrets(without_secrets(url)) == without_secrets(url)


@given(secret=st.text(string.ascii_letters + string.digits + "/@:%&=+!", max_size=8).map(lambda text: f"PLANTED{text}"))
def test_a_secret_within_a_sentence_is_not_shown(secret):
    url = f"https://user:{secret}@mlflow.example/path"
    sentence = f"(psycopg2.OperationalError) connection to {url} failed for password {secret}, see {url}."
    assert "PLANTED" not in scrub(sentence, [url])
    assert "PLANTED" not in describe(OSError(f"cannot reach '{url}'"))


@pytest.mark.parametrize(
    "plain",
    [
        "http://127.0.0.1:5000",
        "https://mlflow.example/path/of/it",
        "s3://bucket/of/some@one/key",
        "sqlite:////data/work@home/mlflow.db",
        "models:/firnline-encoder@champion",
        "runs:/0123/encoder",
        "/data/a@b/c",
        "us-east-1",
        "2022-01-01T00:00:00Z",
    ],
)
def test_what_holds_no_secret_is_shown_as_it_is(plain):
    assert without_secrets(plain) == plain
    assert scrub(plain) == plain


@pytest.mark.parametrize("name", SECRET_VARIABLES)
def test_the_secrets_of_the_environment_are_never_shown(name, monkeypatch):
    monkeypatch.setenv(name, "planted-secret")
    assert scrub("denied for planted-secret at http://127.0.0.1") == "denied for *** at http://127.0.0.1"


def test_an_endpoint_with_a_password_is_not_shown_where_storage_fails(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:planted-secret@127.0.0.1:9")
    said = scrub('Could not connect to the endpoint URL: "http://me:planted-secret@127.0.0.1:9/bucket"')
    assert said == 'Could not connect to the endpoint URL: "http://***@127.0.0.1:9/bucket"'


def test_a_configuration_with_a_secret_is_refused_without_showing_it():
    for key, value in (("path", "s3://KEY:PLANTED@bucket/x.csv"), ("names", "https://host/x.yaml?token=PLANTED")):
        with pytest.raises(InputError, match=rf"labels\.{key} is .*hidden here") as caught:
            resolve({"labels": {key: value}})
        assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize("words", [["s3://KEY:PLANTED@bucket/a", "w"], ["a", "s3://bucket/w?token=PLANTED"]])
def test_an_archive_or_workspace_with_a_secret_is_refused_without_showing_it(words, capsys):
    with pytest.raises(InputError, match=r"\*\*\*.* holds a user name, password or query") as caught:
        command_line.parse("detect", ["ARCHIVE", "WORKSPACE"], words, {})
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize(
    "word",
    [
        "--mlflow=https://PLANTED@mlflow.example",
        "--mlflow=https://me:PL/PLANTED@mlflow.example",
        "--mlflow=postgresql://host/db?password=PLANTED",
        "--labels.path=s3://KEY:PLANTED@bucket/x.csv",
        "s3://KEY:PLANTED@bucket/workspace",
    ],
)
def test_submit_sends_no_url_with_a_secret_and_does_not_show_it(word):
    with pytest.raises(InputError, match="which Ray would show with the job") as caught:
        submit.prepare(["label", word])
    assert "PLANTED" not in str(caught.value)


def test_submit_sends_no_variable_with_a_secret_and_says_which(monkeypatch):
    for name in submit.SENT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://PLANTED@s3.example")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example?token=PLANTED")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert submit.sent_environment() == {"AWS_REGION": "eu-central-1"}
    with pytest.raises(InputError, match=r"Jobs server is https://\*\*\*@ray\.example") as caught:
        submit.submit(["--address", "https://PLANTED@ray.example", "status", "w"])
    assert "PLANTED" not in str(caught.value)
