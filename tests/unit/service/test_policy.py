"""What a request may read and write."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.policy import check_diagnose, check_finetune, check_merge
from service.settings import Settings
from taumerge.errors import InvalidRequest
from taumerge.schemas import DiagnoseRequest, FinetuneRequest, MergeRequest


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name in ("models/a", "models-private/b", "out", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models" / "link").symlink_to(tmp_path / "models-private" / "b")
    (tmp_path / "models" / "inside").symlink_to(tmp_path / "models" / "a")
    (tmp_path / "models" / "loop").symlink_to(tmp_path / "models" / "loop")
    (tmp_path / "root").symlink_to(tmp_path / "models")
    (tmp_path / "out" / "away").symlink_to(tmp_path / "elsewhere")
    return Settings(
        read_roots=f"{tmp_path}/root,file://{tmp_path}/extra%20root",
        write_roots=str(tmp_path / "out"),
        state_dir=tmp_path / "state",
    )


def refused(settings: Settings, base: str, model: str, output: str) -> dict[str, str]:
    """Place → code of what is refused."""
    request = MergeRequest.model_validate(
        {"base": base, "models": [{"uri": base}, {"uri": model}], "method": "median", "output": output}
    )
    try:
        check_merge(request, settings)
    except InvalidRequest as error:
        return {".".join(map(str, item.loc)): item.code for item in error.errors}
    return {}


def test_a_file_of_a_checkpoint_may_link_to_another_place_inside_the_roots_only(
    settings: Settings, tmp_path: Path
) -> None:
    base, output = tmp_path / "models" / "a", str(tmp_path / "out" / "new")
    (base / "model.safetensors").symlink_to(tmp_path / "models" / "blob")
    assert refused(settings, str(base), str(base), output) == {}
    (base / "config.json").symlink_to(tmp_path / "elsewhere" / "secret")
    refusals = {"base": "not_allowed", "models.0.uri": "not_allowed", "models.1.uri": "not_allowed"}
    assert refused(settings, str(base), str(base), output) == refusals


@pytest.mark.parametrize(
    "model",
    [
        "{tmp}/models/a",
        "file://{tmp}/models/a",
        "file://localhost{tmp}/root/a",
        "{tmp}/models/inside",
        "{tmp}/models/../models/a",
        "{tmp}/models/absent",
        "{tmp}/extra root/c",
    ],
)
def test_inside_a_read_root(settings: Settings, tmp_path: Path, model: str) -> None:
    base = str(tmp_path / "models" / "a")
    assert refused(settings, base, model.format(tmp=tmp_path), str(tmp_path / "out" / "new")) == {}


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("{tmp}/models-private/b", "not_allowed"),
        ("{tmp}/models/link", "not_allowed"),
        ("{tmp}/models/link/deeper", "not_allowed"),
        ("{tmp}/models/../models-private/b", "not_allowed"),
        ("file://{tmp}/models/%2e%2e/models-private/b", "not_allowed"),
        ("{tmp}/models/loop", "not_allowed"),
        ("/etc/hostname", "not_allowed"),
        ("/", "not_allowed"),
        ("{tmp}/out", "not_allowed"),
        ("models/a", "unsupported_uri"),
        ("s3://bucket/model", "not_allowed"),
        ("gs://bucket/model", "not_allowed"),
        ("hf://owner/repo@main", "not_allowed"),
        ("https://host.example/model", "not_allowed"),
        ("http://host.example/model", "unsupported_uri"),
        ("simplecache::file:///etc/hostname", "unsupported_uri"),
        ("file://host/models/a", "unsupported_uri"),
        ("{tmp}/models/a\0", "unsupported_uri"),
    ],
)
def test_outside_every_read_root(settings: Settings, tmp_path: Path, model: str, code: str) -> None:
    base = str(tmp_path / "models" / "a")
    found = refused(settings, base, model.format(tmp=tmp_path), str(tmp_path / "out" / "new"))
    assert found == {"models.1.uri": code}


@pytest.mark.parametrize(
    "output",
    ["models/new", "out", "out/../out", "out/away/new", "out/../elsewhere/new", "outer", "out/../out/new"],
)
def test_outputs_outside_the_write_roots(settings: Settings, tmp_path: Path, output: str) -> None:
    model = str(tmp_path / "models" / "a")
    assert refused(settings, model, model, f"{tmp_path}/{output}") == {"output": "not_allowed"}


def test_an_output_is_written_where_it_was_checked(settings: Settings, tmp_path: Path) -> None:
    model = str(tmp_path / "models" / "a")
    (tmp_path / "out" / "sub").mkdir()
    (tmp_path / "models" / "away").symlink_to(tmp_path / "out" / "sub")
    # The link leads into a write root; as text the path leads beside the link, outside of it.
    output = f"{tmp_path}/models/away/../new"
    assert refused(settings, model, model, output) == {"output": "not_allowed"}


def test_the_training_record_beside_a_file_is_in_a_root_too(settings: Settings, tmp_path: Path) -> None:
    base, output = str(tmp_path / "models" / "a"), str(tmp_path / "out" / "new")
    model = tmp_path / "models" / "inside" / "model.safetensors"
    model.touch()
    record = tmp_path / "models" / "a" / "training.json"
    record.touch()
    assert refused(settings, base, str(model), output) == {}
    record.unlink()
    record.symlink_to(tmp_path / "elsewhere" / "training.json")
    assert refused(settings, "s3://x/y", str(model), output)["models.1.uri"] == "not_allowed"


@pytest.mark.parametrize(
    ("name", "refused_at"),
    [
        ("deep", ["output"]),
        ("deep/state", ["output"]),
        ("link", ["output"]),
        ("deep/state/jobs.sqlite3", ["models.1.uri", "output"]),
        ("deep/state/jobs.sqlite3-wal", ["models.1.uri", "output"]),
        ("deep/state/work", ["models.1.uri", "output"]),
        ("link/work/x", ["models.1.uri", "output"]),
        ("deep/state/merged", []),
        ("deep/state-of-the-art", []),
    ],
)
def test_the_state_of_the_service_is_no_place_for_requests(
    tmp_path: Path, name: str, refused_at: list[str]
) -> None:
    state = tmp_path / "deep" / "state"
    (state / "work").mkdir(parents=True)
    (tmp_path / "link").symlink_to(state)
    (tmp_path / "base").mkdir()
    settings = Settings(read_roots=str(tmp_path), write_roots=str(tmp_path), state_dir=state)
    place = f"{tmp_path}/{name}"
    assert refused(settings, str(tmp_path / "base"), place, place) == dict.fromkeys(refused_at, "not_allowed")


def test_everything_is_refused_at_once_and_names_only_what_was_asked_for(
    settings: Settings, tmp_path: Path
) -> None:
    request = MergeRequest(
        base="/etc", models=[{"uri": f"{tmp_path}/models/link"}], method="median", output="/etc/x"
    )
    with pytest.raises(InvalidRequest) as error:
        check_merge(request, settings)
    assert [item.loc for item in error.value.errors] == [("base",), ("models", 0, "uri"), ("output",)]
    assert "models-private" not in str(error.value)
    assert "TAUMERGE_READ_ROOTS" in str(error.value)
    assert "TAUMERGE_WRITE_ROOTS" in str(error.value)


@pytest.mark.parametrize(
    ("base", "dataset", "refusals"),
    [
        ("open_clip://ViT-B-32/openai", {"uri": "hf://datasets/gulls/shades"}, [("uri", "not_allowed")]),
        (
            "open_clip://ViT-B-32/openai",
            {"name": "mnist", "root": "hf://datasets/gulls/digits@v1"},
            [("root", "not_allowed")],
        ),
        ("open_clip://ViT-B-32/openai", {"uri": "hf://datasets/terns/shades@v1"}, []),
        ("open_clip://ViT-B-32/openai", {"name": "mnist", "root": "hf://datasets/terns/digits"}, []),
        ("open_clip://ViT-B-32/openai", {"uri": "hf://datasets/skuas/shades"}, []),
        ("open_clip://ViT-B-32/openai", {"uri": "hf://datasets/skuas/others"}, [("uri", "not_allowed")]),
        ("open_clip://ViT-B-32/openai", {"uri": "hf://datasets/terns"}, [("uri", "unsupported_uri")]),
        ("hf://datasets/terns/shades", {"uri": "hf://datasets/terns/shades"}, [("base", "unsupported_uri")]),
        ("/etc", {"uri": "/etc", "format": "parquet"}, [("base", "not_allowed"), ("uri", "not_allowed")]),
        ("open_clip://ViT-B-32/openai", {"name": "mnist", "root": "/etc"}, [("root", "not_allowed")]),
        (
            "open_clip://ViT-B-32/openai",
            {"uri": "hf://spaces/gulls/shades", "format": None},
            [("uri", "unsupported_uri")],
        ),
    ],
)
def test_what_a_fine_tune_reads_lies_in_a_root_but_for_a_base_by_name(
    tmp_path: Path, base: str, dataset: dict[str, str], refusals: list[tuple[str, str]]
) -> None:
    settings = Settings(
        read_roots="hf://gulls,hf://datasets/terns,hf://datasets/skuas/shades",
        write_roots=str(tmp_path / "out"),
        state_dir=tmp_path / "state",
    )
    task = {"kind": "clip", "dataset": dataset}
    request = FinetuneRequest.model_validate(
        {"base": base, "task": task, "output": str(tmp_path / "out" / "new")}
    )
    found: list[tuple[str | int, str]] = []
    try:
        check_finetune(request, settings)
    except InvalidRequest as error:
        found = [(item.loc[-1], item.code) for item in error.errors]
    assert found == refusals


@pytest.mark.parametrize(("roots", "codes"), [("hf://datasets", []), ("hf://gulls", ["not_allowed"])])
def test_what_an_evaluation_reads_lies_in_a_root(tmp_path: Path, roots: str, codes: list[str]) -> None:
    settings = Settings(read_roots=f"/models,{roots}", write_roots="/models/out", state_dir=tmp_path)
    task = {"dataset": {"uri": "hf://datasets/gulls/shades@v1"}}
    request = DiagnoseRequest.model_validate(
        {
            "base": "/models/base",
            "models": ["/models/ft"],
            "evaluation": {"kind": "clip", "tasks": {"a": task}},
        }
    )
    found: list[str] = []
    try:
        check_diagnose(request, settings)
    except InvalidRequest as error:
        found = [item.code for item in error.errors]
    assert found == codes


REMOTE_ROOTS = (
    "s3://models/team,s3://whole,gs://archive/x,hf://trusted,hf://other/repo,https://Host.example/shared/"
)


@pytest.fixture
def remote_settings(tmp_path: Path) -> Settings:
    return Settings(read_roots=REMOTE_ROOTS, write_roots="s3://models/out", state_dir=tmp_path)


@pytest.mark.parametrize(
    "model",
    [
        "s3://models/team/ft",
        "s3://models/team",
        "s3://whole/anything/at/all",
        "gs://archive/x/y",
        "hf://trusted/model",
        "hf://trusted/model@v1.0/sub",
        "hf://other/repo@main",
        "https://host.example/shared/ft/model.safetensors",
    ],
)
def test_inside_a_remote_root(remote_settings: Settings, model: str) -> None:
    assert refused(remote_settings, "s3://models/team/base", model, "s3://models/out/new") == {}


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("s3://models/team-private/ft", "not_allowed"),
        ("s3://models", "not_allowed"),
        ("s3://models/teams", "not_allowed"),
        ("s3://whole2/x", "not_allowed"),
        ("gs://models/team/ft", "not_allowed"),
        ("hf://trusted2/model", "not_allowed"),
        ("hf://other/repo2", "not_allowed"),
        ("https://host.example/sharedx/ft", "not_allowed"),
        ("https://host.example:8443/shared/ft", "not_allowed"),
        ("https://host.example.attacker.example/shared/ft", "not_allowed"),
        ("/etc/hostname", "not_allowed"),
        ("s3://models/team/../private", "unsupported_uri"),
        ("s3://models/team/%2e%2e/private", "unsupported_uri"),
        ("s3://models/team//private", "unsupported_uri"),
        ("https://host.example@evil.example/shared", "unsupported_uri"),
    ],
)
def test_outside_every_remote_root(remote_settings: Settings, model: str, code: str) -> None:
    base = "s3://models/team/base"
    assert refused(remote_settings, base, model, "s3://models/out/new") == {"models.1.uri": code}


@pytest.mark.parametrize(
    "output", ["s3://models/out", "s3://models/team/x", "s3://models/outer/x", "gs://models/out/x"]
)
def test_outside_the_remote_write_root(remote_settings: Settings, output: str) -> None:
    base = "s3://models/team/base"
    assert refused(remote_settings, base, base, output) == {"output": "not_allowed"}


@pytest.mark.parametrize(
    ("read", "write"),
    [
        ("s3://", "."),
        ("s3://u:p@models/x", "."),
        ("hf://spaces", "."),
        ("hf://spaces/owner", "."),
        ("hf://datasets/owner/name@main", "."),
        ("hf://datasets/owner/name/data", "."),
        ("hf://owner/repo@main", "."),
        ("https://host/x?sig=1", "."),
        ("ftp://host/x", "."),
        ("simplecache::s3://models", "."),
        (".", "hf://owner"),
        (".", "https://host/x"),
    ],
)
def test_roots_that_cannot_be_used(tmp_path: Path, read: str, write: str) -> None:
    with pytest.raises(ValueError, match=r"roots"):
        Settings(read_roots=read, write_roots=write, state_dir=tmp_path)
