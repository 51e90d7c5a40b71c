"""A call to Ray's control service as any program may make it, for tests. As a program: `grpc_call.py HOST:PORT`.

Environment: TOKEN; CA, CERT and KEY name files for TLS, of which the last two may be left out. Prints `let in` or the
name of gRPC's refusal.
"""

import os
import sys
from pathlib import Path

import grpc  # type: ignore[import-untyped]


def call(address: str) -> str:
    token = os.environ.get("TOKEN")
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with _channel(address) as channel:
        try:
            nodes = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
            nodes(b"", timeout=60, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "let in"


def _channel(address: str) -> grpc.Channel:
    if "CA" not in os.environ:
        return grpc.insecure_channel(address)
    ca, key, cert = (_content(os.environ.get(name)) for name in ("CA", "KEY", "CERT"))
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert))


def _content(file: str | None) -> bytes | None:
    return Path(file).read_bytes() if file else None


if __name__ == "__main__":
    print(call(sys.argv[1]))
