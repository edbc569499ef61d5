"""URIs of remote places: what is one, what is refused, and that no refusal repeats a secret."""

from __future__ import annotations

import pytest

from workers.checkpoints.checkpoint import CheckpointError, open_checkpoint
from workers.checkpoints.files import locate
from workers.checkpoints.remote.path import RemotePath, parse_remote


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("s3://bucket/a/b/", RemotePath("s3", "bucket", "a/b")),
        ("s3://my.bucket-1", RemotePath("s3", "my.bucket-1", "")),
        ("gs://my_bucket/x", RemotePath("gs", "my_bucket", "x")),
        ("hf://owner/repo", RemotePath("hf", "owner/repo", "")),
        ("hf://owner/repo.v2@v1.0/sub/dir", RemotePath("hf", "owner/repo.v2", "sub/dir", "v1.0")),
        (
            "https://Host.example:8443/a/b.safetensors",
            RemotePath("https", "host.example:8443", "a/b.safetensors"),
        ),
    ],
)
def test_places(uri: str, path: RemotePath) -> None:
    assert locate(uri) == path
    assert parse_remote(path.uri) == path


def test_it_is_like_a_path() -> None:
    path = parse_remote("s3://bucket/a/model.safetensors")
    assert (path.name, path.stem, path.suffix, path.parent.uri) == (
        "model.safetensors",
        "model",
        ".safetensors",
        "s3://bucket/a",
    )
    assert path.parent / "model.safetensors" == path
    assert (parse_remote("s3://bucket") / "x").uri == "s3://bucket/x"


@pytest.mark.parametrize(
    "uri",
    [
        "simplecache::s3://bucket/a",
        "s3://bucket/a::file:///etc/passwd",
        "s3://key:hunter2@bucket/a",
        "https://user:hunter2@host.example/a",
        "https://hunter2@host.example/a",
        "https://host.example/a?X-Amz-Signature=hunter2",
        "https://host.example/a#hunter2",
        "s3://bucket/a?versionId=hunter2",
        "s3://bucket/../other",
        "s3://bucket/a/../../other",
        "s3://bucket/./a",
        "s3://bucket//a",
        "s3://bucket/%2e%2e/a",
        "s3://bucket/a b",
        "s3://bucket/a\nb",
        "s3://bucket/a\\b",
        "s3://bucket/a*",
        "s3://bucket/[a]",
        "s3://bucket/\u0430",
        "s3://Bucket/a",
        "s3://b..ucket/a",
        "s3://arn:aws:s3:us-east-1:1:accesspoint/x/a",
        "s3:///a",
        "s3://",
        "s3a://bucket/a",
        "S3://bucket/a",
        "hf://owner",
        "hf://datasets/owner/repo",
        "hf://spaces/owner/repo",
        "hf://buckets/owner/repo",
        "hf://owner/repo@",
        "hf://owner/repo@a..b",
        "https://host.example:0/a",
        "https://host.example:99999/a",
        "https://[::1]/a",
        "https://host_x/a",
        "https://host.example\\@evil.example/a",
        "http://host.example/a",
        "http://127.0.0.1/a",
        "ftp://host/a",
        "memory://a",
        "github://o:r@main/a",
        "data:,abc",
        "reference://x",
        "file://s3://bucket/a",
    ],
)
def test_everything_else_is_refused(uri: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(uri)
    assert refused.value.code == "unsupported_uri"
    assert "hunter2" not in refused.value.message
