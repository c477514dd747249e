"""The public port for other machines: TLS whose certificate is renewed, tokens, and what is refused before a start."""

import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dagster_mlops.core.waits import wait_while
from dagster_mlops.errors import DeploymentError
from dagster_mlops.serving import Access, repair, rollback, status, stop
from dagster_mlops.serving.local import envoy, processes
from dagster_mlops.serving.local.envoy_config import Backend, Trial
from dagster_mlops.serving.local.state import load_all
from tests.support.certificates import certificate
from tests.support.small_packages import Deployment

TOKEN, SECOND = "a-token-of-a-client.1", "b*"  # the second is too short


def test_what_cannot_be_used_is_refused_before_anything_starts(tmp_path, monkeypatch):
    other = ec.generate_private_key(ec.SECP256R1())
    missing = Access(certificate=str(tmp_path / "a.pem"), key=str(tmp_path / "b.pem"))
    broken = certificate(tmp_path / "broken", "a")
    Path(broken.key).write_text("nothing")
    for access, message in {
        certificate(tmp_path / "old", "a", days=-1): "is valid from .* only. Renew it",
        certificate(tmp_path / "mixed", "a", key=other): "are not a certificate and its key .*KEY_VALUES_MISMATCH",
        missing: "certificate='.*' cannot be read: No such file",
        broken: "are not a certificate and its key",
    }.items():
        with pytest.raises(DeploymentError, match=message):
            access.read_pair()
    (tmp_path / "tokens").write_text(f"{TOKEN}\n{SECOND}\n")
    (tmp_path / "empty").write_text("\n")
    monkeypatch.setenv("EMPTY", " ")
    for access, message in {
        Access(tokens="NOWHERE"): "names no variable",
        Access(tokens="EMPTY"): "but the list is empty",
        Access(token_file=str(tmp_path / "empty")): "but the list is empty",
        Access(token_file=str(tmp_path / "absent")): "cannot be read: No such file",
        Access(token_file=str(tmp_path / "tokens")): "but number 2 is not a token",
    }.items():
        with pytest.raises(DeploymentError, match=message) as error:
            access.read_tokens()
        assert TOKEN not in str(error.value) and SECOND not in str(error.value)


def test_a_port_for_other_machines_needs_tls_and_tokens():
    files: Any = {"certificate": "a", "key": "b"}
    for access in (
        Access(host="0.0.0.0"),
        Access(host="0.0.0.0", **files),
        Access(host="::", tokens="TOKENS"),
        Access(host="localhost"),
        Access(certificate="a"),
        Access(tokens="TOKENS", token_file="c"),
    ):
        assert any(access.faults().values()), access
    for access in (Access(), Access(host="::1"), Access(host="0.0.0.0", tokens="TOKENS", **files), Access(**files)):
        assert not any(access.faults().values()), access
    assert Access(host="::", **files).url(3000) == "https://[::1]:3000"


class Guarded(Deployment):
    """A deployment that asks for tokens, behind TLS."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tokens = folder, folder / "tokens"
        self.tokens.write_text(TOKEN)
        pair = certificate(folder / "tls", "models.example")
        self.access = Access(host="0.0.0.0", certificate=pair.certificate, key=pair.key, token_file=str(self.tokens))
        super().__init__(folder / "state", access=self.access)
        self.url = f"https://127.0.0.1:{self.port}"

    def code(self, token: str = TOKEN, path: str = "/predict", scheme: str = "Bearer") -> int:
        return self.send(token, path, scheme).status_code

    def send(self, token: str = TOKEN, path: str = "/predict", scheme: str = "Bearer") -> httpx.Response:
        headers = {"authorization": f"{scheme} {token}"} if token else {}
        with httpx.Client(verify=False, trust_env=False, timeout=10, headers=headers) as client:
            if path == "/readyz":
                return client.get(self.url + path)
            return client.post(self.url + path, json={"rows": [{"x": 1.0}]})

    def name(self) -> str:
        """The name in the certificate that clients see."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", self.port)) as plain, context.wrap_socket(plain) as client:
            shown = x509.load_der_x509_certificate(client.getpeercert(binary_form=True) or b"")
        return str(shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    deployment = Guarded(tmp_path_factory.mktemp("access"))
    deployment.roll_out("2")
    yield deployment
    stop(deployment.state_dir)


@pytest.mark.thorough
def test_a_trial_asks_for_tokens_and_readiness_does_not(guarded):
    [state] = [state for state in load_all(guarded.state_dir) if state.phase == "live"]
    live = Backend(state.id, state.ports, state.readiness, state.probe)
    standby = Backend("standby", state.ports, state.readiness, "secret")
    try:
        envoy.route(guarded.state_dir, live, standby, Trial("/predict", share=1.0), tokens=(TOKEN,))
        until(lambda: guarded.send().headers.get("x-deployment") == "standby")
        assert guarded.code("", "/readyz") == 200 and guarded.code("") == 401
    finally:
        repair(guarded.state_dir)


def written(token: str, path: Path) -> bool:
    """True if a file has the token, also as a part of a pattern in JSON."""
    return token in path.read_text("latin-1").replace("\\", "")


def until(condition) -> None:
    wait_while(lambda: not condition(), timeout=30, error=lambda _: AssertionError("waited in vain"))


@pytest.mark.thorough
def test_only_clients_with_a_token_are_answered_and_no_server_sees_it(guarded):
    answer = guarded.send()
    assert answer.status_code == 200 and "authorization" not in answer.json()["headers"]
    assert guarded.code(scheme="bearer") == 200 and guarded.code("", "/readyz") == 200
    wrong = ["", TOKEN[:-1], TOKEN + "1", TOKEN.upper(), TOKEN.replace(".", "x"), f"x {TOKEN}"]
    refusals = [guarded.send(token) for token in wrong] + [guarded.send(scheme="Basic"), guarded.send("", "/else")]
    assert {refusal.status_code for refusal in refusals} == {401}
    assert len({refusal.text for refusal in refusals}) == 1 and "rbac" not in refusals[0].text.lower()
    assert refusals[0].headers["www-authenticate"] == "Bearer"
    with pytest.raises(httpx.HTTPError):
        httpx.get(guarded.url.replace("https", "http"), trust_env=False)
    old = ssl.create_default_context()
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError, match=r"(?i)alert protocol version"):
        httpx.get(guarded.url, verify=old, trust_env=False)


@pytest.mark.thorough
def test_rollouts_rollbacks_and_commands_work_as_without(guarded):
    guarded.roll_out("3")
    assert guarded.send().json()["predictions"] == [3.0]
    [row] = status(guarded.state_dir)
    assert row["healthy"] and row["url"] == guarded.url
    rollback(guarded.state_dir)
    assert guarded.send().json()["predictions"] == [2.0] and repair(guarded.state_dir) == []
    assert guarded.code("") == 401
    secrets = {path for path in guarded.state_dir.rglob("*") if path.is_file() and written(TOKEN, path)}
    assert {path.name for path in secrets} == {"target.json", "rds.json"}
    private = guarded.state_dir / "envoy" / "live" / "sds.json"
    assert {path.stat().st_mode & 0o777 for path in (*secrets, private)} == {0o600}


@pytest.mark.thorough
def test_a_renewed_certificate_and_other_tokens_are_taken_without_a_restart_and_broken_ones_are_not(guarded):
    def pid() -> list[int]:
        return [
            process.pid
            for role, group in processes.marked(guarded.state_dir).items()
            for process in group
            if role.startswith("envoy:") and processes.mark(process, processes.PROGRAM) == "envoy"
        ]

    before = pid()
    certificate(guarded.folder / "tls", "renewed.example")
    many = [f"{number:064x}" for number in range(200)]
    guarded.tokens.write_text("\n".join([*many, "another-token-of-a-client", TOKEN]))
    assert repair(guarded.state_dir) == [
        f"Gave Envoy the certificate {guarded.access.certificate}.",
        f"Gave Envoy the tokens of {guarded.tokens}.",
        "Restored the routes of Envoy.",
    ]
    until(lambda: guarded.name() == "renewed.example" and guarded.code("another-token-of-a-client") == 200)
    assert guarded.code(many[7]) == guarded.code() == 200 and status(guarded.state_dir)[0]["healthy"]

    certificate(guarded.folder / "tls", "expired.example", days=-1)
    guarded.tokens.write_text("")
    kept = repair(guarded.state_dir)
    assert [action.partition(":")[0] for action in kept] == ["Envoy keeps its certificate", "Envoy keeps its tokens"]
    assert guarded.name() == "renewed.example" and guarded.code() == 200 and guarded.code("") == 401
    rollback(guarded.state_dir)
    assert guarded.code() == 200 and pid() == before


@pytest.mark.thorough
def test_an_open_deployment_becomes_a_guarded_one_and_one_that_cannot_stays_open(tmp_path):
    pair = certificate(tmp_path / "tls", "models.example")
    (tmp_path / "tokens").write_text(TOKEN)
    deployment = Deployment(tmp_path / "state")
    try:
        deployment.roll_out("2")
        tokens = str(tmp_path / "tokens")
        elsewhere = Access(host="192.0.2.1", certificate=pair.certificate, key=pair.key, token_file=tokens)
        with pytest.raises(DeploymentError, match=r"'192.0.2.1' is not an address of this machine"):
            deployment.roll_out("3", access=elsewhere)
        assert deployment.ask().json()["predictions"] == [2.0] and repair(deployment.state_dir) == []
        deployment.roll_out("3", access=Access(token_file=tokens))
        assert deployment.ask().status_code == 401
        assert deployment.ask(headers={"authorization": f"Bearer {TOKEN}"}).json()["predictions"] == [3.0]
        deployment.roll_out("3")
        assert deployment.ask().json()["predictions"] == [3.0]
        assert not [path for path in deployment.state_dir.rglob("*") if path.is_file() and written(TOKEN, path)]
    finally:
        stop(deployment.state_dir)
