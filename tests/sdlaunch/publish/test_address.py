"""Where a result is published, from text."""

import pytest

from sdjob.problems import JobError
from sdlaunch.publish.address import Address, parse


@pytest.mark.parametrize(
    ("text", "wanted", "package"),
    [
        ("hub:me/my-dog_1.0", Address("hub:me/my-dog_1.0", "hub", "me/my-dog_1.0"), "huggingface_hub"),
        ("s3://bucket/dog/", Address("s3://bucket/dog/", "s3", "bucket/dog"), "s3fs"),
        ("oss://bucket/dog", Address("oss://bucket/dog", "oss", "bucket/dog"), "ossfs"),
        ("memory://dog", Address("memory://dog", "memory", "dog"), "fsspec"),
    ],
)
def test_addresses(text, wanted, package):
    assert parse(text) == wanted and parse(text).package[1] == package


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hub:dog", "names no repository"),
        ("hub:me/dog/more", "names no repository"),
        ("/mnt/elsewhere", "found '/mnt/elsewhere'"),
        ("s3://", "found 's3://'"),
        ("S3//bucket", "found"),
        ("s3://bucket/\nx", "found"),
        ("s3://[bucket/x", "is not an address"),
        ("s3://KEY:hidden@bucket/dog", "holds a login"),
        ("https://host/x?token=hidden", "or a query"),
    ],
)
def test_what_is_no_address(text, found):
    with pytest.raises(JobError) as caught:
        parse(text, "to")
    (problem,) = caught.value.problems
    assert (problem.code, problem.subject) == (64, "to") and found in problem.found
    assert "hidden" not in str(problem)
