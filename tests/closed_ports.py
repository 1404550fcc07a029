"""Questions to a port of Ray that carry no token, and how it answers."""

import urllib.error
import urllib.request

import grpc

# One harmless question of each of Ray's gRPC services; a server that has the service must refuse it without the token.
GRPC_QUESTIONS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.LogService/ListLogs",
)
HTTP_QUESTIONS = ("/api/version", "/api/jobs/", "/nodes", "/metrics", "/get_or_create_runtime_env")


def answers_without_token(port: int, host: str = "127.0.0.1") -> set[str]:
    """Return how a port answers questions that carry no token: gRPC status names and HTTP status codes."""
    answers: set[str] = set()
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for question in GRPC_QUESTIONS:
            try:
                channel.unary_unary(question)(b"", timeout=5)
                answers.add(f"{question} answered")
            except grpc.RpcError as error:
                answers.add(error.code().name)
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    break
    for question in HTTP_QUESTIONS:
        for method, body in (("GET", None), ("POST", b"")):
            request = urllib.request.Request(f"http://{host}:{port}{question}", data=body, method=method)
            try:
                with urllib.request.urlopen(request, timeout=5):
                    answers.add(f"{method} {question} answered")
            except urllib.error.HTTPError as error:
                answers.add(str(error.code))
            except (OSError, ValueError):
                pass
            except Exception as error:  # a gRPC server's answer is no HTTP at all
                answers.add(type(error).__name__)
    return answers
