"""The contract of a record: it is the same wherever it was kept."""

from dagster_mlops.provenance import NAMESPACE, Record, records_in


def check_record(record: Record) -> None:
    """A record survives a tag of the tool and Dagster's metadata.

    >>> from dagster_mlops.provenance import Dataset
    >>> check_record(Dataset(tool="lakefs", path="raw/a.parquet", md5="9f", repo="lakefs://main"))

    Raises:
        AssertionError: It does not, or it lacks something that a ref or a reader needs.
    """
    text = record.to_json()
    assert "\n" not in text, "to_json() has to be one line, because a tag may take only one"
    copy = Record.from_json(text)
    assert copy == record, f"The record is another one after JSON:\n{copy}\nbefore:\n{record}"
    assert copy.ref == record.ref, f"The record names {copy.ref} after JSON, and {record.ref} before."
    metadata = record.to_metadata()
    assert f"{NAMESPACE}/{record.role}" in metadata, f"The metadata has no {NAMESPACE}/{record.role}."
    assert list(records_in(metadata)) == [record], "The record is another one after Dagster's metadata."
    assert record.tool, "The record has no tool."
    assert record.ref.id, "The record's ref has no id, so that nothing can ask for it."
    assert record.ref not in record.upstream, "The record names itself as upstream."
    assert record.title(), "The record has no title."
