"""DVC remotes: a real S3 server in a process of its own, and a proxy in front of it that fails as it is told."""

import shutil
import socket
import subprocess
import sys
import time
import uuid
from http.client import HTTPConnection

import boto3
import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap  # what the web server stores and shows

from dagster_mlops.dvc import DvcResource, dataset_asset
from dagster_mlops.errors import DatasetError
from tests.support import known_warnings
from tests.support.http_servers import QuietHandler, QuietServer, serving

pytestmark = [
    pytest.mark.usefixtures("warm_dvc"),
    *known_warnings.DVC,
    *known_warnings.UNCLOSED,
    *known_warnings.BOTOCORE,
]

SECRET = "hush-hush-0815"
SERVER = """
import sys, time
from moto.server import ThreadedMotoServer
ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False).start()
print("up", flush=True)
time.sleep(3600)
"""


@pytest.fixture(scope="module")
def s3(free_port):
    """The address of an S3 server."""
    port = free_port()
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdout=subprocess.PIPE)
    assert server.stdout and server.stdout.readline() == b"up\n"
    yield port
    server.kill()
    server.communicate()


class Proxy(QuietServer):
    """Passes requests on, unless `fault` (method, path → status, "cut" or None) says otherwise."""

    def __init__(self, upstream):
        super().__init__(Handler)
        self.upstream, self.seen = upstream, []
        self.fault = lambda method, path: None


class Handler(QuietHandler):
    protocol_version = "HTTP/1.1"

    def _pass_on(self):
        proxy = self.server
        assert isinstance(proxy, Proxy)
        fault = proxy.fault(self.command, self.path)
        proxy.seen.append((self.command, self.path, fault))
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "silent":
            time.sleep(20)
        if fault == "cut":  # in the middle of the body
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self.rfile.read(length)
        if fault and fault != "cut answer":
            self._answer(fault, {"Content-Type": "application/xml"}, b"<Error><Code>Told</Code></Error>")
            return
        upstream = HTTPConnection("127.0.0.1", proxy.upstream, timeout=20)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in ("connection", "transfer-encoding")}
        if fault == "cut answer":
            content, self.close_connection = content[: len(content) // 2], True
        self._answer(answer.status, headers, content)
        upstream.close()

    def _answer(self, status, headers, content):
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        size = headers.get("Content-Length", headers.get("content-length")) or len(content)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on


@pytest.fixture
def proxy(s3):
    with serving(Proxy(s3)) as proxy:
        yield proxy


@pytest.fixture
def client(s3):
    """The server without the proxy."""
    names = {"region_name": "us-east-1", "aws_access_key_id": "me", "aws_secret_access_key": SECRET}
    return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{s3}", **names)


@pytest.fixture
def bucket(client):
    name = f"b{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def dvc(tmp_path, proxy, bucket, monkeypatch):
    """A resource whose secret comes from the environment, and whose remote is behind the proxy."""
    monkeypatch.setenv("S3_SECRET", SECRET)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")  # of each request, instead of 5: the tests wait less
    return DvcResource(
        repo=str(tmp_path / "data"),
        remote_url=f"s3://{bucket}/dvc",
        remote_config={
            "endpointurl": proxy.url,
            "region": "us-east-1",
            "access_key_id": "me",
            "secret_access_key": dg.EnvVar("S3_SECRET"),
        },
    )


@pytest.fixture
def stored(dvc):
    dvc.init()
    (dvc.root / "x.txt").write_text("one")
    return dvc.store("x.txt")


def _forget_cache(dvc):
    for kept in (dvc.root / ".dvc" / "cache", dvc.root / ".dvc" / "tmp"):
        shutil.rmtree(kept)


def _files_with(text, folder):
    return [file for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


def test_a_dataset_goes_to_s3_and_comes_back(dvc, stored):
    assert stored.remote.startswith("s3://")
    _forget_cache(dvc)
    (dvc.root / "x.txt").unlink()
    assert dvc.read_path("x.txt", md5=stored.md5).read_text() == "one"


def test_secrets_are_in_no_file_no_record_no_event_and_no_snapshot(dvc, tmp_path):
    @dataset_asset(path="raw/{partition}.txt", partitions_def=dg.StaticPartitionsDefinition(["a"]))
    def raw(context, dvc: DvcResource) -> str:
        context.log.info(f"configured: {dvc.remote_config}")
        return "text"

    (tmp_path / "home").mkdir()
    with dg.instance_for_test(temp_dir=str(tmp_path / "home")) as instance:
        defs = dg.Definitions(assets=[raw], resources={"dvc": dvc})
        snapshot = dg.serialize_value(RepositorySnap.from_def(defs.get_repository_def()))
        job = defs.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(instance=instance, partition_key="a")
        assert result.success
        events = "".join(map(str, instance.all_logs(result.run_id)))
    assert "S3_SECRET" in snapshot
    assert SECRET not in snapshot + events
    assert (dvc.root / "raw/a.txt.dvc").exists() and _files_with(SECRET, tmp_path) == []


def test_a_variable_that_is_not_set_is_named(dvc, stored, monkeypatch):
    monkeypatch.delenv("S3_SECRET")
    with pytest.raises(DatasetError, match="secret_access_key comes from the environment variable S3_SECRET"):
        dvc.store("x.txt")


def test_options_alone_go_to_the_default_remote_that_the_repository_names(dvc, stored):
    plain = DvcResource(repo=dvc.repo, remote_config=dvc.remote_config)
    (dvc.root / "x.txt").write_text("two")
    assert plain.store("x.txt").remote == stored.remote
    with pytest.raises(DatasetError, match=r"cannot use the configuration of .*extra keys.*no_such_option"):
        DvcResource(repo=dvc.repo, remote_config={"no_such_option": "1"}).store("x.txt")


def test_refused_credentials_are_not_tried_again(dvc, stored, proxy):
    (dvc.root / "x.txt").write_text("two")
    proxy.fault = lambda method, path: 403
    proxy.seen.clear()
    with pytest.raises(DatasetError, match=r"refuses the credentials: check those in remote_config") as raised:
        dvc.store("x.txt")
    assert SECRET not in str(raised.value) and len(proxy.seen) <= 4
    proxy.fault = lambda method, path: None
    assert dvc.store("x.txt").rev == dvc.revision("x.txt")


def test_a_bucket_that_does_not_exist_is_named(dvc):
    elsewhere = DvcResource(repo=dvc.repo, remote_url="s3://nowhere-at-all/dvc", remote_config=dvc.remote_config)
    elsewhere.init()
    (elsewhere.root / "x.txt").write_text("one")
    with pytest.raises(DatasetError, match=r"pushed to s3://nowhere-at-all/dvc: .*There is no such bucket"):
        elsewhere.store("x.txt")


@pytest.mark.parametrize("made", ["now", "before"])
def test_the_password_of_a_remote_is_its_owners(tmp_path, made):
    repo = DvcResource(repo=str(tmp_path / "repo"))
    if made == "before":
        repo.init("https://ml:old@store/dvc")
        (repo.root / ".dvc" / "config.local").chmod(0o644)  # as an earlier version, or DVC itself, leaves it
    repo.init("https://ml:secret@store/dvc")
    local = repo.root / ".dvc" / "config.local"
    assert ":secret@" in local.read_text() and local.stat().st_mode & 0o777 == 0o600
    assert (repo.root / ".dvc").stat().st_mode & 0o777 == 0o755


def test_copies_of_data_outside_of_the_workspace_are_their_owners(tmp_path):
    dvc = DvcResource(repo=str(tmp_path / "repo"), push=False)
    dvc.init()
    versions = []
    for text in ("Ann", "Bob"):
        (dvc.root / "names").write_text(text)
        versions.append(dvc.store("names").md5)
    copy = dvc.read_path("names", md5=versions[0])
    assert copy.read_text() == "Ann" and copy != dvc.root / "names"
    assert copy.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("url", ["gs://bucket/dvc", "ssh://host/dvc"])
def test_a_remote_without_its_package_says_what_to_install(tmp_path, url):
    dvc = DvcResource(repo=str(tmp_path / "data"), remote_url=url)
    dvc.init()
    (dvc.root / "x.txt").write_text("one")
    with pytest.raises(DatasetError, match=rf"Run: pip install dvc-{url.partition(':')[0]}"):
        dvc.store("x.txt")


def _failing(times, how, methods=("PUT", "POST")):
    """A fault of the next `times` requests with one of `methods`."""
    left = iter(range(times))
    return lambda method, path: how if method in methods and next(left, None) is not None else None


@pytest.mark.parametrize("fault", [500, "cut"])
def test_an_upload_that_fails_for_a_while_is_tried_again(dvc, stored, proxy, fault):
    proxy.fault = _failing(4, fault)
    (dvc.root / "x.txt").write_text("two" * 100_000)
    record = dvc.store("x.txt")
    assert len([seen for seen in proxy.seen if seen[2]]) == 4
    _forget_cache(dvc)
    (dvc.root / "x.txt").unlink()
    assert dvc.read_path("x.txt", md5=record.md5).read_text() == "two" * 100_000


def test_a_download_that_breaks_off_is_tried_again_and_never_served_cut_off(dvc, proxy):
    dvc.init()
    (dvc.root / "x.txt").write_text("one" * 1_000_000)
    record = dvc.store("x.txt")
    _forget_cache(dvc)
    (dvc.root / "x.txt").unlink()
    proxy.fault = _failing(3, "cut answer", methods=("GET",))
    assert dvc.read_path("x.txt", md5=record.md5).read_text() == "one" * 1_000_000


@pytest.mark.thorough
def test_a_remote_that_fails_for_ever_ends_in_bounded_time_and_the_next_run_finishes(dvc, stored, proxy):
    (dvc.root / "x.txt").write_text("two")
    proxy.fault = lambda method, path: 500
    started = time.monotonic()
    with pytest.raises(DatasetError, match=r"cannot be pushed to s3://.* its pointer is committed: re-run"):
        dvc.store("x.txt")
    assert time.monotonic() - started < 60
    proxy.fault = lambda method, path: None
    commits = dvc.revision("x.txt")
    record = dvc.store("x.txt")
    assert record.rev == commits
    _forget_cache(dvc)
    (dvc.root / "x.txt").unlink()
    assert dvc.read_path("x.txt", md5=record.md5).read_text() == "two"


def test_a_folder_whose_upload_stops_halfway_is_not_there_until_it_is_whole(dvc, proxy, monkeypatch):
    monkeypatch.setattr("dagster_mlops.dvc.store.remotes._PAUSES", (0.1,))
    dvc.init()
    (dvc.root / "parts").mkdir()
    for number in range(12):
        (dvc.root / "parts" / f"{number}.txt").write_text(str(number))
    taken = []

    def after_five(method, path):
        if method in ("PUT", "POST"):
            taken.append(path)
        return 500 if len(taken) > 5 else None

    proxy.fault = after_five
    with pytest.raises(DatasetError, match="its pointer is committed: re-run"):
        dvc.store("parts")
    assert not any(path.endswith(".dir") and not fault for method, path, fault in proxy.seen if method == "PUT")
    proxy.fault = lambda method, path: None
    record = dvc.store("parts")
    _forget_cache(dvc)
    shutil.rmtree(dvc.root / "parts")
    back = dvc.read_path("parts", md5=record.md5)
    assert sorted(int(file.read_text()) for file in back.iterdir()) == list(range(12))


def test_an_object_that_was_cut_off_in_the_bucket_is_noticed_and_mended_by_the_next_store(dvc, stored, bucket, client):
    key = f"dvc/files/md5/{stored.md5[:2]}/{stored.md5[2:]}"
    client.put_object(Bucket=bucket, Key=key, Body=b"o")
    _forget_cache(dvc)
    (dvc.root / "x.txt").unlink()
    with pytest.raises(DatasetError, match="holds other bytes under that hash"):
        dvc.read_path("x.txt", md5=stored.md5)
    (dvc.root / "x.txt").write_text("one")
    assert dvc.store("x.txt").md5 == stored.md5
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"one"


@pytest.mark.thorough
def test_a_remote_that_accepts_and_says_nothing_ends_in_bounded_time(dvc, stored, proxy, monkeypatch):
    monkeypatch.setattr("dagster_mlops.dvc.store.remotes._PAUSES", ())
    monkeypatch.setattr("dagster_mlops.dvc.store.remotes.READ_TIMEOUT", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    _forget_cache(dvc)
    (dvc.root / "x.txt").unlink()
    proxy.fault = lambda method, path: "silent"
    started = time.monotonic()
    with pytest.raises(DatasetError, match=r"and its remote s3://.*/dvc fails: .*[Tt]imeout"):
        dvc.read_path("x.txt", md5=stored.md5)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("locked", [False, True])
def test_a_remote_has_a_limit_for_its_silence_whether_the_repository_is_locked_or_not(tmp_path, locked):
    dvc = DvcResource(repo=str(tmp_path / "data"), remote_url="s3://bucket/dvc", remote_config={"connect_timeout": 3})
    dvc.init()
    with dvc.open(locked=locked) as repo:
        options = repo.config["remote"]["storage"]
    assert (options["read_timeout"], options["connect_timeout"]) == (20, 3)
