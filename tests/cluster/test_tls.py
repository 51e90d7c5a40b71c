"""Ray with certificates on both sides: a driver that has one works, and nobody else is let in."""

import datetime
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from machines import HOME, Machine
from rig import USER, Rig

pytestmark = pytest.mark.cluster

TESTS = Path(__file__).parents[1]
PORT = 6380
DRIVER = """\
import sys
from dataclasses import replace
from pipeline import runtime
from pipeline.config import load_params
with runtime.cluster(replace(load_params().compute, address=sys.argv[1])):
    import ray
    print("a worker has", ray.get(ray.remote(lambda: __import__("pipeline").__file__).remote()))
"""


def write_certificates(folder: Path, address: str) -> None:
    """A certification authority of our own, and one certificate of it for every part, as files of PEM."""
    folder.mkdir()
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "node")}
    names = {name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in keys}
    now = datetime.datetime.now(datetime.UTC)
    hosts = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(ip)) for ip in ("127.0.0.1", address))]
    for name, key in keys.items():
        certificate = (
            x509.CertificateBuilder()
            .subject_name(names[name]).issuer_name(names["ca"]).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
            .sign(keys["ca"], hashes.SHA256())
        )  # fmt: skip
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.key").write_bytes(secret)


def called(machine: Machine, address: str, **env: str) -> str:
    return machine.run("python", "grpc_call.py", address, env=env).strip()


def test_with_certificates_a_driver_works_and_nobody_else_is_let_in(rig: Rig) -> None:
    """A Ray of the laptop's own, beside the cluster: it ends with the machine."""
    machine = rig.laptop
    write_certificates(machine.home / "tls", machine.address)
    (machine.home / "grpc_call.py").write_text((TESTS / "grpc_call.py").read_text())
    files = {"CERT": f"{HOME}/tls/node.crt", "KEY": f"{HOME}/tls/node.key", "CA": f"{HOME}/tls/ca.crt"}
    tls = {"RAY_USE_TLS": "1", "RAY_TLS_SERVER_CERT": files["CERT"], "RAY_TLS_SERVER_KEY": files["KEY"],
           "RAY_TLS_CA_CERT": files["CA"]}  # fmt: skip
    address = f"{machine.address}:{PORT}"
    machine.run("ray", "start", "--head", f"--port={PORT}", f"--node-ip-address={machine.address}", "--num-cpus=1",
                "--include-dashboard=false", "--object-store-memory=104857600", env={**USER, **tls})  # fmt: skip
    try:
        printed = rig.at_home("python", "-c", DRIVER, address, env=tls)
        assert "a worker has /tmp/ray/" in printed
        token = {"TOKEN": rig.token}
        assert called(machine, address, **token, **files) == "let in"
        assert called(machine, address, **files) == "UNAUTHENTICATED"
        assert called(machine, address, **token, CA=files["CA"]) == "UNAVAILABLE"
        assert called(machine, address, **token) == "UNAVAILABLE"
    finally:
        machine.run("ray", "stop", "--force", env=USER)
