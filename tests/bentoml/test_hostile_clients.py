"""Clients that mean harm, against a deployed bento: they get 4xx or are cut off, and harm no other client."""

import base64
import contextlib
import gzip
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_mlops.serving import status, stop
from dagster_mlops.serving.local import envoy
from dagster_mlops.serving.local.processes import marked
from tests.bentoml.test_bentoml import World
from tests.support import known_warnings

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.DEPRECATED,
    *known_warnings.MLFLOW_HINTS,
    *known_warnings.DAGSTER_BETA,
]

MIB = 2**20
MOST_OF_A_REPLICA, MOST_OF_ENVOY = 1200 * MIB, 300 * MIB
ROW = {"hour": 7.0, "wind": 12.5, "carrier": "AA"}
JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("hostile"))
    world.train(1)
    world.promote("1")
    assert world.materialize(replicas=2).success
    yield world
    stop(world.state_dir)


def processes(world: World) -> dict[str, list[psutil.Process]]:
    """Those of the servers and of Envoy."""
    groups = marked(world.state_dir).items()
    kinds: dict[str, list[psutil.Process]] = {"envoy": [], "replica": []}
    for role, group in groups:
        kinds["envoy" if role.startswith(envoy.ROLE) else "replica"] += group
    return kinds


def starts(world: World) -> dict[str, str]:
    """Every start of each server and of Envoy, as their locks name them."""
    locks = {str(file): file.read_text() for file in world.state_dir.glob("run/*/*.lock")}
    assert len(locks) == 4, "of two replicas, the process that forks them, and Envoy"
    return locks


@contextlib.contextmanager
def unharmed(world: World) -> Iterator[dict[str, int]]:
    """Another client is served without a failure meanwhile, no process ends, and none takes too much memory."""
    before, over, codes = starts(world), threading.Event(), Counter[int]()
    most = {"envoy": 0, "replica": 0}

    def ask() -> None:
        with httpx.Client(base_url=world.url, timeout=60, trust_env=False) as client:
            while not over.is_set():
                try:
                    codes[client.post("/predict", json={"rows": [ROW]}).status_code] += 1
                except httpx.HTTPError:
                    codes[0] += 1
                time.sleep(0.02)

    def measure() -> None:
        while not over.wait(0.1):
            for kind, group in processes(world).items():
                most[kind] = max(most[kind], *(process.memory_info().rss for process in group))

    threads = [threading.Thread(target=work) for work in (ask, measure)]
    for thread in threads:
        thread.start()
    try:
        yield most
    finally:
        over.set()
        for thread in threads:
            thread.join()
    print({kind: f"{size / MIB:.0f} MiB" for kind, size in most.items()}, dict(codes))
    assert set(codes) == {200}
    assert starts(world) == before
    assert most["replica"] < MOST_OF_A_REPLICA and most["envoy"] < MOST_OF_ENVOY
    [row] = status(world.state_dir)
    assert row["healthy"]


def answer(world: World, content: bytes, kind: str = JSON, **headers: bytes) -> int:
    """The status, or 0 if the connection was closed."""
    sent: Any = {b"content-type": kind.encode(), **{name.replace("_", "-").encode(): v for name, v in headers.items()}}
    try:
        return httpx.post(
            f"{world.url}/predict", content=content, headers=sent, timeout=60, trust_env=False
        ).status_code
    except httpx.TransportError:
        return 0


def rows(text: str) -> bytes:
    return f'{{"rows": [{text}]}}'.encode()


def feature(value: str) -> bytes:
    return rows(f'{{"hour": {value}, "wind": 1, "carrier": "AA"}}')


def stream(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def many(count: int) -> bytes:
    return rows(",".join([json.dumps(ROW)] * count))


TABLE = pa.table({"hour": [7.0], "wind": [12.5], "carrier": ["AA"]})
BODIES: dict[str, tuple[bytes, str]] = {
    **{
        f"number {value[:12]}": (feature(value), JSON)
        for value in (
            "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "9" * 100_000, "0x10", "1_000", "01", "+1",
            ".5", "true", '"7"', "[]", "{}",
        )
    },
    **{
        f"text {number}": (rows(f'{{"hour": 1, "wind": 1, "carrier": {value}}}'), JSON)
        for number, value in enumerate(('"\\ud800"', '"\\udfff\\ud800"', "1", "[]", "true", '"\\x"', '"\t"', '"a'))
    },
    "a surrogate in UTF-8": (b'{"rows": [{"hour": 1, "wind": 1, "carrier": "\xed\xa0\x80"}]}', JSON),
    "not UTF-8": (b'{"rows": [{"hour": 1, "wind": 1, "carrier": "\xff\xfe"}]}', JSON),
    "UTF-16": (many(1).decode().encode("utf-16"), JSON),
    "a BOM": (b"\xef\xbb\xbf" + many(1), JSON),
    "lists in lists": (b'{"rows": ' + b"[" * 2_000_000, JSON),
    "lists in a feature": (feature("[" * 100_000 + "]" * 100_000), JSON),
    "objects in objects": (b'{"rows": [' + b'{"hour":' * 500_000, JSON),
    "an unknown list in a row": (rows('{"hour": 1, "wind": 1, "carrier": "AA", "z": ' + "[" * 100_000), JSON),
    "a million rows": (rows(",".join(["{}"] * 1_000_000)), JSON),
    "a million rows of a column": (many(1_000_000 // 5), JSON),
    "no rows": (rows(""), JSON),
    "empty": (b"", JSON),
    "null": (b"null", JSON),
    "zeros": (b"\0" * MIB, JSON),
    "16 MiB and one": (b" " * (16 * MIB + 1), JSON),
    "16 MiB of blanks": (b" " * (16 * MIB), JSON),
    "16 MiB of a text": (rows('{"hour": 1, "wind": 1, "carrier": "' + "a" * (15 * MIB) + '"}'), JSON),
    "16 MiB of empty lists": (rows('{"hour": 1, "z": [' + ",".join(["[]"] * 5_000_000) + "]}"), JSON),
    "twenty thousand names": (rows("{" + ",".join(f'"k{n}":{n}' for n in range(20_000)) + "}"), JSON),
    "a bad id": (b'{"rows": [{"hour": 1, "wind": 1, "carrier": "AA"}], "ids": ["a\\nb"]}', JSON),
    "too many ids": (b'{"rows": [{"hour": 1, "wind": 1, "carrier": "AA"}], "ids": ["a", "b"]}', JSON),
    "compressed": (gzip.compress(many(1)), JSON),
    "a form": (
        b'--x\r\ncontent-disposition: form-data; name="rows"\r\n\r\n[]\r\n--x--\r\n', "multipart/form-data; boundary=x"
    ),
    "text": (many(1), "text/plain"),
    "pickle": (base64.b64decode("gASVAAAAAAAAAACM"), "application/vnd.bentoml+pickle"),
    "half of an Arrow stream": (stream(TABLE)[:300], ARROW),
    "JSON as Arrow": (many(1), ARROW),
    "zeros as Arrow": (b"\0" * 100_000, ARROW),
    "an Arrow stream of other types": (stream(pa.table({"hour": ["a"], "wind": [1.0], "carrier": ["AA"]})), ARROW),
    "a compressed Arrow stream": (
        stream(pa.table({"hour": pa.array([0.0] * 5_000_000), "wind": pa.nulls(5_000_000)}), compression="zstd"), ARROW
    ),
    "one value in each row": (
        stream(
            pa.table(
                {
                    "hour": pa.array([1.0] * 100_000),
                    "wind": pa.array([1.0] * 100_000),
                    "carrier": pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["a" * MIB]),
                }
            )
        ),
        ARROW,
    ),
    "values without bytes": (
        stream(pa.table({"hour": pa.FixedSizeListArray.from_arrays(pa.nulls(2**30), 2**30), "wind": [1.0]})), ARROW
    ),
}  # fmt: skip


def test_a_body_that_is_no_request_is_refused(world):
    with unharmed(world):
        codes = {name: answer(world, *body) for name, body in BODIES.items()}
        assert answer(world, many(1)) == 200 and answer(world, stream(TABLE), ARROW) == 200
        for coding in (b"gzip", b"deflate", b"br", b"identity", b"x"):
            codes[coding.decode()] = answer(world, many(1), content_encoding=coding)
        for name in (b"a b", b"a" * 201, "é".encode()):
            codes[name.decode()] = answer(world, many(1), x_request_id=name)
    print(codes)
    assert {name: code for name, code in codes.items() if code and not 400 <= code < 500} == {}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.sampled_from(["", "AA", "hour", "now", "2026-01-01", 2**63, -(2**63) - 1, 10**400]),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.sampled_from([*ROW, "x", ""]), children, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        VALUES,
        st.fixed_dictionaries({"rows": VALUES}, optional={"ids": VALUES, "params": VALUES, "entities": VALUES}),
        st.fixed_dictionaries({"rows": st.lists(st.fixed_dictionaries(dict.fromkeys(ROW, VALUES)), max_size=3)}),
    ).map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=200),
    st.sampled_from([JSON, ARROW]),
    st.integers(0, 30),
)
def test_any_body_is_predicted_or_refused(world, body, kind, cut):
    code = answer(world, body[: len(body) - cut], kind)
    assert code == 200 or 400 <= code < 500


def test_many_large_requests_at_once_cost_a_bounded_amount_of_memory(world):
    large = {"rows": many(90_000), "lists": BODIES["16 MiB of empty lists"][0], "a text": BODIES["16 MiB of a text"][0]}
    with unharmed(world), ThreadPoolExecutor(40) as pool:
        bodies = [large[name] for _ in range(20) for name in large]
        codes = Counter(pool.map(lambda body: answer(world, body), bodies))
    print(codes)
    assert not {code for code in codes if code and code != 200 and not 400 <= code < 500}


def talk(world: World, parts: Sequence[bytes], pause: float = 0) -> int:
    """The status of the answer to raw bytes, or 0 if there is none."""
    with socket.create_connection(("127.0.0.1", world.port), timeout=30) as client:
        with contextlib.suppress(OSError):
            for part in parts:
                client.sendall(part)
                time.sleep(pause)
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(client.makefile("rb").readline().split()[1])
    return 0


POST = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def test_what_is_not_http_is_refused_or_cut_off(world):
    body = many(1)
    length = b"Content-Length: %d\r\n" % len(body)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    garbage = {
        "garbage": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 500 + b"\r\n\r\n"],
        "HTTP/2": [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 100],
        "two lengths": [POST, length, b"Content-Length: 1\r\n\r\n", body],
        "a length and chunks": [POST, length, b"Transfer-Encoding: chunked\r\n\r\n", chunks],
        "a bad length": [POST, b"Content-Length: -1\r\n\r\n", body],
        "a huge length": [POST, b"Content-Length: 99999999999999999999999\r\n\r\n", body],
        "a bad chunk": [POST, b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n{}\r\n0\r\n\r\n"],
        "a huge chunk": [POST, b"Transfer-Encoding: chunked\r\n\r\n", b"ffffffffffffffff\r\n{}\r\n0\r\n\r\n"],
        "a long path": [b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"],
        "a null in a header": [POST, b"x: a\0b\r\n", length, b"\r\n", body],
        "no host": [b"GET /readyz HTTP/1.1\r\n\r\n"],
        "many headers": [POST, b"".join(b"x-%d: 1\r\n" % number for number in range(5000)), length, b"\r\n", body],
        "a long header": [POST, b"x: " + b"a" * MIB + b"\r\n", length, b"\r\n", body],
        "another method": [POST.replace(b"POST", b"BREW"), length, b"\r\n", body],
        "a connection for others": [b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n"],
        "another protocol": [POST, b"Connection: Upgrade\r\nUpgrade: websocket\r\n", length, b"\r\n", body[:-1] + b"x"],
    }
    with unharmed(world):
        codes = {name: talk(world, parts) for name, parts in garbage.items()}
        assert talk(world, [POST, b"Transfer-Encoding: chunked\r\n\r\n", chunks]) == 200
        pipelined = (POST + length + b"\r\n" + body) * 500
        with socket.create_connection(("127.0.0.1", world.port), timeout=60) as client:
            threading.Thread(target=client.sendall, args=(pipelined,)).start()
            received = b""
            while received.count(b"HTTP/1.1 200") < 500 and (part := client.recv(65_536)):
                received += part
            assert received.count(b"HTTP/1.1 200") == 500
    print(codes)
    assert {name: code for name, code in codes.items() if code and not 400 <= code < 500} == {}


def test_hundreds_of_slow_and_half_open_clients_keep_no_one_out(world):
    begin = POST + b"Content-Length: %d\r\n\r\n" % len(many(1))
    with unharmed(world), contextlib.ExitStack() as stack:
        half = [
            stack.enter_context(socket.create_connection(("127.0.0.1", world.port), timeout=60)) for _ in range(600)
        ]
        for number, client in enumerate(half):
            client.sendall((POST, begin, begin + many(1)[:20])[number % 3])
        slow = ThreadPoolExecutor(30)
        chunked = [POST + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n \r\n"] * 100]
        answers = [slow.submit(talk, world, chunked, 0.2) for _ in range(30)]
        codes = Counter[int]()
        for client in half:
            with contextlib.suppress(OSError, ValueError, IndexError):
                codes[int(client.makefile("rb").readline().split()[1])] += 1
        codes += Counter(answer.result() for answer in answers)
        slow.shutdown()
    print(codes)
    assert {code for code in codes if code} == {408}
