"""Certificates for servers of tests."""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dagster_mlops.serving import Access

DAY = datetime.timedelta(days=1)


def certificate(folder: Path, name: str, *, days: int = 30, key: "ec.EllipticCurvePrivateKey | None" = None) -> Access:
    """A certificate for a name that no machine has, signed by itself."""
    folder.mkdir(exist_ok=True)
    now, subject = datetime.datetime.now(datetime.UTC), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    own_key = ec.generate_private_key(ec.SECP256R1())
    signed = (
        x509.CertificateBuilder(subject, subject, own_key.public_key(), x509.random_serial_number())
        .not_valid_before(now - 10 * DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(own_key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "server.pem").write_bytes(signed.public_bytes(encoding))
    (folder / "server.key").write_bytes(
        (key or own_key).private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    )
    return Access(certificate=str(folder / "server.pem"), key=str(folder / "server.key"))
