"""The fault proxy does to a client what it says, and nothing else."""

import time

import boto3
import botocore.exceptions
import pytest
from botocore.config import Config
from faultproxy import Fault, FaultProxy
from loopback_servers import S3Server

BODY = bytes(range(256)) * 1200


def client_through(proxy: FaultProxy, *, attempts: int = 1):
    retries = {"mode": "standard", "total_max_attempts": attempts}
    return boto3.client("s3", endpoint_url=proxy.url, config=Config(retries=retries, read_timeout=1, connect_timeout=5))


def test_without_a_fault_objects_pass_unchanged(moto_s3: S3Server):
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        client = client_through(proxy)
        client.put_object(Bucket=moto_s3.bucket, Key="a", Body=BODY)
        assert client.get_object(Bucket=moto_s3.bucket, Key="a")["Body"].read() == BODY
        assert client.head_object(Bucket=moto_s3.bucket, Key="a")["ContentLength"] == len(BODY)
        assert client.list_objects_v2(Bucket=moto_s3.bucket)["KeyCount"] == 1
        client.delete_object(Bucket=moto_s3.bucket, Key="a")
        assert client.list_objects_v2(Bucket=moto_s3.bucket)["KeyCount"] == 0


def test_throttling_strikes_as_often_as_asked_and_a_retry_passes(moto_s3: S3Server):
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        proxy.add(Fault("throttle", method="PUT", times=1))
        client_through(proxy, attempts=3).put_object(Bucket=moto_s3.bucket, Key="a", Body=b"firn")
        assert (proxy.count("throttle"), proxy.count(method="PUT")) == (1, 2)


def test_a_throttled_request_says_slow_down(moto_s3: S3Server):
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        proxy.add(Fault("throttle", times=None))
        with pytest.raises(botocore.exceptions.ClientError, match="SlowDown"):
            client_through(proxy).list_objects_v2(Bucket=moto_s3.bucket)


def read_into(arrived: bytearray, body) -> None:
    while block := body.read(10_000):
        arrived += block


@pytest.mark.parametrize("kind", ["reset_in_body", "end_early", "stall"])
def test_a_body_ends_after_the_stated_bytes(kind, moto_s3: S3Server):
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        client = client_through(proxy)
        client.put_object(Bucket=moto_s3.bucket, Key="a", Body=BODY)
        proxy.add(Fault(kind, method="GET", after_bytes=100_000, seconds=3))
        body = client.get_object(Bucket=moto_s3.bucket, Key="a")["Body"]
        arrived = bytearray()
        with pytest.raises(botocore.exceptions.BotoCoreError):
            read_into(arrived, body)
        assert arrived == BODY[: len(arrived)]
        assert len(arrived) <= 100_000
        assert proxy.count(kind) == 1


def test_a_lost_answer_leaves_the_work_done(moto_s3: S3Server):
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        proxy.add(Fault("lose_answer", method="PUT"))
        client = client_through(proxy)
        with pytest.raises(botocore.exceptions.BotoCoreError):
            client.put_object(Bucket=moto_s3.bucket, Key="a", Body=b"firn")
        assert client.get_object(Bucket=moto_s3.bucket, Key="a")["Body"].read() == b"firn"


def test_skip_and_path_choose_the_request(moto_s3: S3Server):
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        client = client_through(proxy)
        for key in "ab":
            client.put_object(Bucket=moto_s3.bucket, Key=key, Body=b"firn")
        proxy.add(Fault("reset", method="GET", path="/b", skip=1))
        client.get_object(Bucket=moto_s3.bucket, Key="a")
        client.get_object(Bucket=moto_s3.bucket, Key="b")
        with pytest.raises(botocore.exceptions.BotoCoreError):
            client.get_object(Bucket=moto_s3.bucket, Key="b")


def test_a_delay_delays(moto_s3: S3Server):
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        proxy.add(Fault("delay", seconds=0.5))
        begin = time.monotonic()
        client_through(proxy).list_objects_v2(Bucket=moto_s3.bucket)
        assert time.monotonic() - begin >= 0.5
