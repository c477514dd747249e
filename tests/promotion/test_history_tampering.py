"""A change of a history is found, and the entry is named: random changes of each kind, with and without keys."""

import base64
import json
import random
from collections.abc import Callable, Sequence

import pytest

from dagster_mlops.errors import HistoryError
from dagster_mlops.promotion.history import envelope as envelopes
from dagster_mlops.promotion.history.entry import PROMOTION, Entry, read_entry
from dagster_mlops.promotion.history.envelope import HEAD, STATEMENT, new_key, seal, signing_key, trusted_keys
from dagster_mlops.promotion.history.merkle import Tree
from dagster_mlops.promotion.history.verification import Held, Store, Verification, verify

SIZE, FILES = 30, "ab" * 32


def written(size: int, after: Sequence[str] = (), why: str = "better") -> tuple[list[str], list[str]]:
    """The texts and heads of a history, which continues `after` others; signed where the variable says."""
    tree, texts, heads, key = Tree(), [*after], [], signing_key()
    for text in after:
        tree.append(text.encode())
    for number in range(len(after), size):
        facts = {"gate": [{"rule": "better auc", "verdict": "holds"}], "values": {"candidate": number / 100}}
        entry = Entry(
            number, PROMOTION, "delay", "champion", str(number), str(number + 1), "2026-05-01T00:00:00+00:00", "ann",
            why, tree.root(), FILES, facts,
        )  # fmt: skip
        texts.append(seal(STATEMENT, entry.statement(), key))
        tree.append(texts[-1].encode())
        heads.append(seal(HEAD, {"model": "delay", "size": number + 1, "root": tree.root()}, key))
    return texts, heads


@pytest.fixture(params=["signed", "not signed"])
def keys(request, monkeypatch):
    monkeypatch.delenv(envelopes.PUBLIC_KEYS, raising=False)
    if request.param == "not signed":
        monkeypatch.delenv(envelopes.SIGNING_KEY, raising=False)
        return {}
    monkeypatch.setenv(envelopes.SIGNING_KEY, new_key()[0])
    return trusted_keys()


class Two:
    """The two stores of a history, one of which is changed."""

    def __init__(self, texts: list[str], heads: list[str], changed: int) -> None:
        self.texts = [dict(enumerate(texts)), dict(enumerate(texts))]
        # The event log has the head of each promotion, the registry the last one.
        self.heads = [[heads[-1]], heads[::-1]]
        self.all_heads, self.changed, self.holder = heads, changed, Held(str(len(texts)), FILES)

    @property
    def mine(self) -> dict[int, str]:
        return self.texts[self.changed]

    def verified(self, keys) -> Verification:
        stores = [
            Store(name, {number: [text] for number, text in texts.items()}, heads)
            for name, texts, heads in zip(("mlflow", "dagster"), self.texts, self.heads, strict=True)
        ]
        return verify("delay", stores, {"champion": self.holder}, keys)


def edit(two: Two, rng: random.Random) -> set[int]:
    number = rng.randrange(SIZE)
    envelope = json.loads(two.mine[number])
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["predicate"][rng.choice(["after", "before", "by", "why", "at", "kind"])] += "x"
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    if rng.random() < 0.5:
        envelope["signatures"] = []
    two.mine[number] = json.dumps(envelope)
    return {number}


def garble(two: Two, rng: random.Random) -> set[int]:
    number = rng.randrange(SIZE)
    text = two.mine[number]
    place = rng.randrange(len(text))
    two.mine[number] = text[:place] + rng.choice("xX{}0\"'é") * 3 + text[place + 1 :]
    return {number}


def remove(two: Two, rng: random.Random) -> set[int]:
    number = rng.randrange(SIZE)
    del two.mine[number]
    return {number}


def close_the_gap(two: Two, rng: random.Random) -> set[int]:
    """An entry is removed, and those after it move up."""
    number = rng.randrange(SIZE - 1)
    texts = [text for place, text in sorted(two.mine.items()) if place != number]
    two.texts[two.changed] = dict(enumerate(texts))
    return {number}


def reorder(two: Two, rng: random.Random) -> set[int]:
    first, second = rng.sample(range(SIZE), 2)
    two.mine[first], two.mine[second] = two.mine[second], two.mine[first]
    return {first, second}


def replay(two: Two, rng: random.Random) -> set[int]:
    """An old entry stands in the place of a later one, or comes once more at the end."""
    old, number = sorted(rng.sample(range(SIZE + 1), 2))
    two.mine[number] = two.mine[old]
    return {number}


def truncate(two: Two, rng: random.Random) -> set[int]:
    """The last entries go, and an old head, which is true, is put in the place of the newer ones."""
    size = rng.randrange(1, SIZE)
    for number in range(size, SIZE):
        del two.mine[number]
    two.heads[two.changed] = two.all_heads[:size][::-1]
    return {*range(size, SIZE)}


def rewrite(two: Two, rng: random.Random) -> set[int]:
    """All entries from one on, with roots and heads to match, by someone without the key."""
    fork = rng.randrange(SIZE)
    with pytest.MonkeyPatch.context() as patch:
        if rng.random() < 0.5:
            patch.setenv(envelopes.SIGNING_KEY, new_key()[0])
        else:
            patch.delenv(envelopes.SIGNING_KEY, raising=False)
        texts, heads = written(SIZE, [two.mine[number] for number in range(fork)], "forged")
    two.texts[two.changed] = dict(enumerate(texts))
    two.heads[two.changed] = [heads[-1]]
    return {fork}


def swap_the_files(two: Two, rng: random.Random) -> set[int]:
    two.holder = Held(two.holder.version, f"{rng.randrange(16**64):064x}")
    return {SIZE - 1}


def replay_a_head(two: Two, rng: random.Random) -> set[int]:
    two.heads[two.changed] = [two.all_heads[rng.randrange(SIZE - 1)]]
    return set()


def forge_an_approval(two: Two, rng: random.Random) -> set[int]:
    number = rng.randrange(SIZE)
    entry, _ = read_entry(two.mine[number])
    facts = {**entry.facts, "approvals": [{"by": "bob", "at": "2026-05-01"}]}
    statement = {**entry.statement()}
    statement["predicate"] = {**statement["predicate"], "facts": facts}
    forged = json.loads(seal(STATEMENT, statement, None))
    forged["signatures"] = json.loads(two.mine[number])["signatures"]
    two.mine[number] = json.dumps(forged)
    return {number}


KINDS: list[Callable[[Two, random.Random], set[int]]] = [
    edit, garble, remove, close_the_gap, reorder, replay, truncate, rewrite, swap_the_files, replay_a_head,
    forge_an_approval,
]  # fmt: skip


def changes(keys, rounds: int) -> None:
    texts, heads = written(SIZE)
    assert Two(texts, heads, 0).verified(keys).holds
    for seed in range(rounds):
        for kind in KINDS:
            for changed in (0, 1):
                rng = random.Random(f"{seed} {kind.__name__} {changed}")
                two = Two(texts, heads, changed)
                numbers = kind(two, rng)
                if two.texts[0] == two.texts[1] == dict(enumerate(texts)) and kind in (garble, edit):
                    continue  # the letters were the same
                result = two.verified(keys)
                assert not result.holds, (kind.__name__, seed)
                assert numbers <= {finding.entry for finding in result.findings}, (kind.__name__, seed, numbers)


def test_each_kind_of_change_in_one_store_is_found_and_its_entry_is_named(keys):
    changes(keys, 2)


@pytest.mark.thorough
def test_more_than_two_thousand_changes_of_one_store_are_found_and_their_entries_are_named(keys):
    changes(keys, 50)


@pytest.mark.parametrize("kind", [edit, garble, remove, close_the_gap, reorder, rewrite, forge_an_approval])
def test_with_a_key_the_same_change_of_both_stores_is_found_too(monkeypatch, kind):
    monkeypatch.setenv(envelopes.SIGNING_KEY, new_key()[0])
    texts, heads = written(SIZE)
    for seed in range(3):
        two = Two(texts, heads, 0)
        numbers = kind(two, random.Random(seed))
        two.texts[1] = dict(two.texts[0])
        result = two.verified(trusted_keys())
        assert {finding.entry for finding in result.findings} & numbers, kind.__name__


def foreign(rng: random.Random) -> str:
    """A text that someone without a key writes where the next entry belongs."""
    return rng.choice(["", "x", "{}", json.dumps({"payloadType": STATEMENT}), f"0123456789abcdef 2 {rng.random()}"])


@pytest.mark.parametrize("place", [0, SIZE - 1, SIZE, "both ends"])
def test_a_foreign_text_at_the_end_is_a_note_also_when_entries_have_followed(keys, place):
    for seed in range(5):
        rng = random.Random(seed)
        first = [foreign(rng)] if place in (0, "both ends") else []
        early, heads = written(SIZE - 1 if place == SIZE - 1 else SIZE, first)
        texts, later = written(SIZE + 1, [*early, foreign(rng)]) if place == SIZE - 1 else (early, [])
        two = Two(texts, heads + later, 0)
        if place in (SIZE, "both ends"):
            two.mine[SIZE] = foreign(rng)
        if place != SIZE - 1:
            two.holder = Held(str(SIZE), FILES)
        result = two.verified(keys)
        assert result.holds, result.findings
        assert {note.entry for note in result.notes} == ({0, SIZE} if place == "both ends" else {place})
        assert all("is not an entry here" in note.problem for note in result.notes)


def test_a_foreign_text_in_the_place_of_an_entry_is_found_in_one_store_and_in_both(keys):
    texts, heads = written(SIZE)
    for number in (0, 1, SIZE // 2, SIZE - 1):
        for changed in ((0,), (1,), (0, 1)):
            two, old_head = Two(texts, heads, 0), heads[max(number - 1, 0)]
            for each in changed:
                two.texts[each][number] = "x"
            result = two.verified(keys)
            assert number in {finding.entry for finding in result.findings}, (number, changed)
            two.texts[0][SIZE], two.heads[0] = "y", [old_head]
            result = two.verified(keys)
            assert number in {finding.entry for finding in result.findings}, (number, changed)


def test_a_text_behind_a_gap_costs_no_time_and_an_entry_there_is_found(keys):
    texts, heads = written(3)
    two = Two(texts, heads, 0)
    two.mine[99_999_999] = "x"
    assert two.verified(keys).holds and [note.entry for note in two.verified(keys).notes] == [99_999_999]
    two.mine[99_999_999] = texts[0]
    assert [finding.entry for finding in two.verified(keys).findings] == [99_999_999]


def test_a_verdict_says_how_strong_it_is(monkeypatch):
    monkeypatch.delenv(envelopes.SIGNING_KEY, raising=False)
    early, _ = written(2)
    assert "could have changed both" in Two(*written(3), 0).verified({}).strength
    monkeypatch.setenv(envelopes.SIGNING_KEY, private := new_key()[0])
    signed, heads = written(3)
    strength = Two(signed, heads, 0).verified(trusted_keys()).strength
    assert ": 3 of 3 entries; " in strength and "only who has the key" in strength
    # A key came with the third entry: the two before it are vouched for by its root.
    tree = Tree()
    for text in early:
        tree.append(text.encode())
    third = Entry(2, PROMOTION, "delay", "champion", "2", "3", "2026-05-01", "ann", "better", tree.root(), FILES, {})
    texts = [*early, seal(STATEMENT, third.statement(), signing_key())]
    tree.append(texts[-1].encode())
    head = seal(HEAD, {"model": "delay", "size": 3, "root": tree.root()}, signing_key())
    result = Two(texts, [head] * 3, 0).verified(trusted_keys())
    assert result.holds and ": 1 of 3 entries, which vouch for the 2 before" in result.strength
    monkeypatch.setenv(envelopes.SIGNING_KEY, new_key()[0])  # the key of someone else
    other = Two(signed, heads, 0).verified(trusted_keys())
    assert "no entry has a signature of your keys" in other.strength and private


@pytest.mark.parametrize(
    "text",
    ["", "x", "{}", "[]", "1", '{"payloadType": 1}', '{"payloadType": "a", "payload": "e30=", "signatures": []}',
     json.dumps({"payloadType": STATEMENT, "payload": base64.b64encode(b"[]").decode(), "signatures": []}),
     json.dumps({"payloadType": STATEMENT, "payload": "e30=", "signatures": [{"keyid": "a", "sig": "!"}]}),
     json.dumps({"payloadType": STATEMENT, "payload": base64.b64encode(b"[" * 99_999).decode(), "signatures": []})],
    ids=range(10),
)  # fmt: skip
def test_a_text_that_is_no_entry_is_an_error_of_the_history(text):
    with pytest.raises(HistoryError):
        read_entry(text)


@pytest.mark.parametrize(
    "value", ["-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "/no/such/file", "x"]
)
def test_a_key_that_cannot_be_read_is_an_error_that_says_how_to_make_one_and_does_not_show_it(monkeypatch, value):
    monkeypatch.setenv(envelopes.SIGNING_KEY, value)
    with pytest.raises(HistoryError, match="dagster-mlops history key FILE") as refusal:
        signing_key()
    assert "AAAA" not in str(refusal.value)


def test_a_key_may_be_a_text_on_one_line_or_a_path_and_public_keys_several(monkeypatch, tmp_path):
    private, public = new_key()
    (tmp_path / "a.pub").write_text(public)
    (tmp_path / "b.pub").write_text(new_key()[1])
    monkeypatch.setenv(envelopes.SIGNING_KEY, private.replace("\n", "\\n"))
    monkeypatch.setenv(envelopes.PUBLIC_KEYS, f"{tmp_path}/a.pub:{tmp_path}/b.pub")
    assert signing_key() and len(trusted_keys()) == 2
    (tmp_path / "key").write_text(private)
    monkeypatch.setenv(envelopes.SIGNING_KEY, str(tmp_path / "key"))
    assert signing_key() and len(trusted_keys([tmp_path / "b.pub"])) == 2
    monkeypatch.setenv(envelopes.SIGNING_KEY, str(tmp_path / "a.pub"))
    with pytest.raises(HistoryError, match="is not one private Ed25519 key"):
        signing_key()
