"""The test servers answer as the tests assume."""

import urllib.request

import boto3


def test_the_bucket_is_empty_and_holds_what_is_put(moto_s3):
    client = boto3.client("s3")
    assert client.list_objects_v2(Bucket=moto_s3.bucket)["KeyCount"] == 0
    client.put_object(Bucket=moto_s3.bucket, Key="a", Body=b"firn")
    assert client.get_object(Bucket=moto_s3.bucket, Key="a")["Body"].read() == b"firn"


def test_the_tracking_server_answers(mlflow_server):
    assert urllib.request.urlopen(f"{mlflow_server}/health").read() == b"OK"


def test_the_small_ray_runs_a_task(ray_cluster):
    import ray

    @ray.remote
    def square(number: int) -> int:
        return number * number

    assert ray.get(square.remote(7)) == 49
