import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from taumerge.errors import JobFailed
from workers.checkpoints import renaming, writing
from workers.checkpoints.layout import FileLayout, lay_out
from workers.checkpoints.renaming import exchange, rename_new
from workers.checkpoints.writing import FileWriter, Staging, free_bytes, sha256_of, sync

IDENTITY = "0123456789abcdef0123"
FILES = lay_out(
    [("a", "F32", (4,)), ("b", "F32", (8,))], stem="model", max_shard_bytes=32, metadata={"format": "pt"}
)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "merged"


@pytest.fixture(params=["renameat2", "plain rename"])
def rename_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain rename":

        def unsupported(*args: object) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(renaming, "_renameat2", unsupported)
    return str(request.param)


def staged(output: Path, files: tuple[FileLayout, ...] = FILES) -> Staging:
    staging = Staging(output, IDENTITY)
    staging.create(files)
    return staging


def fill(staging: Staging, files: tuple[FileLayout, ...] = FILES) -> dict[str, bytes]:
    """Write every tensor; what the files hold then."""
    for file in files:
        with FileWriter(staging.path / file.name) as writer:
            for offset, nbytes in file.tensors.values():
                writer.write_at(memoryview(bytes(range(nbytes))), offset)
    return {file.name: (staging.path / file.name).read_bytes() for file in files}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def failure(error: pytest.ExceptionInfo[JobFailed]) -> str:
    str(error.value).encode()
    return error.value.code


def test_files_are_created_at_full_size_with_their_headers(output: Path) -> None:
    staging = staged(output)
    assert staging.path == output.parent / ".merged.0123456789abcdef.partial"
    for file in FILES:
        content = (staging.path / file.name).read_bytes()
        assert content == file.header.ljust(file.size, b"\0")
        assert (staging.path / file.name).stat().st_blocks * 512 >= file.size
    assert not output.exists()


def test_a_commit_shows_exactly_what_was_written(output: Path, rename_kind: str) -> None:
    staging = staged(output)
    expected = fill(staging)
    for file in FILES:
        sync(staging.path / file.name)
        staging.finish(file.name, {"sha256": sha256_of(staging.path / file.name)})
    staging.write_text("taumerge.json", "{}\n")
    config = output.with_name("config.json")
    config.write_text('{"θ": 1}')
    staging.copy(config)
    staging.commit(overwrite=False)
    assert contents(output) == expected | {"taumerge.json": b"{}\n", "config.json": config.read_bytes()}
    assert sorted(path.name for path in output.parent.iterdir()) == ["config.json", "merged"]


def test_modes_follow_the_umask(output: Path) -> None:
    before = os.umask(0o027)
    try:
        staging = staged(output)
        staging.write_text("taumerge.json", "{}")
    finally:
        os.umask(before)
    staging.commit(overwrite=False)
    assert stat.S_IMODE(output.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in output.iterdir()} == {0o640}


def test_finished_files_survive_an_attempt(output: Path) -> None:
    first = staged(output)
    before = fill(first)
    done, undone = (file.name for file in FILES)
    first.finish(done, {"sha256": "abc", "bytes": 5})
    (first.path / undone).write_bytes(b"half written")

    second = staged(output)
    assert second.finished() == {done: {"sha256": "abc", "bytes": 5}}
    assert (second.path / done).read_bytes() == before[done]
    assert (second.path / undone).read_bytes()[: len(FILES[1].header)] == FILES[1].header
    assert (second.path / undone).stat().st_size == FILES[1].size


@pytest.mark.parametrize("damage", ["removed", "shortened"])
def test_a_finished_file_that_is_gone_is_created_again(damage: str, output: Path) -> None:
    first = staged(output)
    fill(first)
    path = first.path / FILES[0].name
    first.finish(path.name, {})
    if damage == "removed":
        path.unlink()
    else:
        os.truncate(path, 5)
    assert staged(output).finished() == {}
    assert path.read_bytes() == FILES[0].header.ljust(FILES[0].size, b"\0")


def test_another_identity_shares_nothing(output: Path) -> None:
    staged(output).finish(FILES[0].name, {})
    assert Staging(output, "f" * 32).finished() == {}
    assert Staging(output, "f" * 32).path != Staging(output, IDENTITY).path


def test_two_attempts_at_once_leave_the_same_bytes(output: Path) -> None:
    first = staged(output)
    expected = fill(first)
    second = staged(output)
    assert {file.name: (first.path / file.name).read_bytes() for file in FILES} == expected
    assert fill(second) == expected


def test_a_directory_without_a_journal_is_not_gone_on_from(output: Path) -> None:
    staging = Staging(output, IDENTITY)
    staging.path.mkdir()
    (staging.path / "old.safetensors").write_bytes(b"what an interrupted commit swapped out")
    staging.create(FILES)
    staging.commit(overwrite=False)
    assert {path.name for path in output.iterdir()} == {file.name for file in FILES}


def test_what_a_killed_write_left_is_not_committed(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = staged(output)

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            staging.write_text("taumerge.json", "{}")
    staging.commit(overwrite=False)
    assert {path.name for path in output.iterdir()} == {file.name for file in FILES}


@pytest.mark.parametrize("existing", ["directory", "empty directory", "file", "dangling link"])
def test_an_existing_output_is_refused_and_untouched(existing: str, output: Path, rename_kind: str) -> None:
    staging = staged(output)
    if existing == "dangling link":
        output.symlink_to("nowhere")
    elif existing == "file":
        output.write_text("kept")
    else:
        output.mkdir()
        if existing == "directory":
            (output / "kept").write_text("kept")
    with pytest.raises(JobFailed, match="exists by now") as caught:
        staging.commit(overwrite=False)
    assert failure(caught) == "output_exists"
    if existing == "dangling link":
        assert output.is_symlink()
    elif existing == "file":
        assert output.read_text() == "kept"
    else:
        assert [path.name for path in output.iterdir()] == ["kept"] * (existing == "directory")
    staging.discard()
    assert [path.name for path in output.parent.iterdir()] == ["merged"]


@pytest.mark.parametrize("existing", ["directory", "file", "link"])
def test_overwriting_swaps_and_removes_the_old_output(existing: str, output: Path, rename_kind: str) -> None:
    target = output.with_name("target")
    target.mkdir()
    (target / "kept").write_text("kept")
    if existing == "link":
        output.symlink_to(target)
    elif existing == "file":
        output.write_text("old")
    else:
        (output / "sub").mkdir(parents=True)
        (output / "sub" / "old").write_text("old")
    staging = staged(output)
    expected = fill(staging)
    staging.commit(overwrite=True)
    assert not output.is_symlink()
    assert contents(output) == expected
    assert contents(target) == {"kept": b"kept"}
    assert sorted(path.name for path in output.parent.iterdir()) == ["merged", "target"]


def test_overwriting_nothing(output: Path, rename_kind: str) -> None:
    staging = staged(output)
    staging.commit(overwrite=True)
    assert {path.name for path in output.iterdir()} == {file.name for file in FILES}


def test_an_old_output_that_cannot_be_removed_does_not_fail_the_merge(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output.mkdir()
    (output / "old").write_text("old")
    staging = staged(output)
    monkeypatch.setattr(writing, "_remove", lambda path: None)
    staging.commit(overwrite=True)
    assert {path.name for path in output.iterdir()} == {file.name for file in FILES}
    monkeypatch.undo()
    staging.discard()
    assert [path.name for path in output.parent.iterdir()] == ["merged"]


def test_a_swap_that_fails_puts_the_old_output_back(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output.mkdir()
    (output / "old").write_text("old")
    staging = staged(output)
    rename = Path.rename

    def broken(source: Path, target: Path) -> Path:
        if source == staging.path and target == output:
            raise OSError(errno.EIO, "Input/output error")
        return rename(source, target)

    def unsupported(*args: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(renaming, "_renameat2", unsupported)
    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(JobFailed) as caught:
        staging.commit(overwrite=True)
    assert failure(caught) == "output_unwritable"
    assert contents(output) == {"old": b"old"}


@pytest.mark.parametrize("place", ["rename_new", "_remove"])
def test_a_commit_that_dies_loses_no_finished_file(
    output: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    staging = staged(output)
    fill(staging)
    for file in FILES:
        staging.finish(file.name, {})

    def die(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, place, die)
        with pytest.raises(KeyboardInterrupt):
            staging.commit(overwrite=False)
    if place == "rename_new":  # it goes on from there
        assert staged(output).finished().keys() == {file.name for file in FILES}
    else:  # it is in place, and whoever sweeps leaves the files alone
        staging.discard()
        assert contents(output).keys() == {file.name for file in FILES}


def test_of_many_commits_to_one_output_one_wins(output: Path, rename_kind: str) -> None:
    stagings = [Staging(output, f"{number:016d}") for number in range(8)]
    for staging in stagings:
        staging.create(FILES)
        staging.write_text("taumerge.json", staging.path.name)
    outcomes: list[str] = []
    barrier = threading.Barrier(len(stagings))

    def commit(staging: Staging) -> None:
        barrier.wait()
        try:
            staging.commit(overwrite=False)
            outcomes.append(staging.path.name)
        except JobFailed as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=commit, args=(staging,)) for staging in stagings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = (output / "taumerge.json").read_text()
    assert sorted(outcomes) == sorted([winner] + ["output_exists"] * 7)


def test_finished_files_of_other_contents_are_made_again(output: Path) -> None:
    staging = staged(output)
    staging.keep_only("λ 0.3")
    fill(staging)
    staging.finish(FILES[0].name, {})
    Staging(output, IDENTITY).keep_only("λ 0.3")
    assert list(staging.finished()) == [FILES[0].name]
    Staging(output, IDENTITY).keep_only("λ 0.5")
    assert staging.finished() == {}
    staging.finish(FILES[0].name, {})
    staging.keep_only("λ 0.5")
    staging.commit(overwrite=False)
    assert {path.name for path in output.iterdir()} == {file.name for file in FILES}


def test_a_commit_after_a_discard_fails_and_shows_nothing(output: Path) -> None:
    staging = staged(output)
    Staging(output, IDENTITY).discard()
    with pytest.raises(JobFailed) as caught:
        staging.commit(overwrite=False)
    assert failure(caught) == "output_unwritable"
    assert list(output.parent.iterdir()) == []


def test_discard_leaves_no_trace_and_no_parent_that_create_made(tmp_path: Path) -> None:
    output = tmp_path / "new" / "deeper" / "merged"
    staging = staged(output)
    staging.write_text("taumerge.json", "{}")
    Staging(output, IDENTITY).discard()
    assert list(tmp_path.iterdir()) == []
    staging.discard()


def test_discard_keeps_parents_that_were_there_or_are_in_use(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    staged(tmp_path / "old" / "new" / "merged").discard()
    assert list((tmp_path / "old").iterdir()) == []

    staging = staged(tmp_path / "old" / "new" / "merged")
    (tmp_path / "old" / "new" / "other").touch()
    staging.discard()
    assert [path.name for path in (tmp_path / "old" / "new").iterdir()] == ["other"]


def test_parents_are_remembered_over_attempts(tmp_path: Path) -> None:
    output = tmp_path / "new" / "merged"
    staged(output)
    staged(output).discard()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_known_before_anything_is_computed(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    staging = Staging(output, IDENTITY)
    with pytest.raises(JobFailed, match="bytes are free and") as caught:
        staging.create(FILES)
    assert failure(caught) == "disk_full"
    needed = sum(file.size for file in FILES)
    assert caught.value.details["needed_bytes"] == needed
    assert f"{needed} are needed" in caught.value.message
    assert caught.value.details["free_bytes"] > 0
    staging.discard()
    assert list(output.parent.iterdir()) == []


def test_more_than_the_disk_has_free_is_not_even_reserved(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "free_bytes", lambda path: sum(file.size for file in FILES) - 1)
    staging = Staging(output, IDENTITY)
    with pytest.raises(JobFailed) as caught:
        staging.create(FILES)
    assert failure(caught) == "disk_full"
    assert list(output.parent.iterdir()) == []


def test_space_that_an_earlier_attempt_reserved_is_not_needed_again(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = staged(output)
    monkeypatch.setattr(writing, "free_bytes", lambda path: 0)
    staging.create(FILES)
    staging.commit(overwrite=False)
    assert {path.name for path in output.iterdir()} == {file.name for file in FILES}


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_disks_that_cannot_reserve_space(code: int, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(fd: int, offset: int, length: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    staging = staged(output)
    for file in FILES:
        assert (staging.path / file.name).read_bytes() == file.header.ljust(file.size, b"\0")


def test_an_output_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobFailed) as caught:
        staged(tmp_path / "file" / "merged")
    assert failure(caught) == "output_unwritable"


def test_an_output_that_cannot_be_written(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object, **kwargs: object) -> None:  # root may write everywhere
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(JobFailed, match="Permission denied") as caught:
        staged(output)
    assert failure(caught) == "output_unwritable"


def test_a_link_in_the_place_of_an_output_file_is_not_followed(output: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    staging = staged(output)
    path = staging.path / FILES[0].name
    path.unlink()
    path.symlink_to(victim)
    with pytest.raises(JobFailed):
        FileWriter(path)
    with pytest.raises(JobFailed):
        staged(output)
    assert victim.read_text() == "kept"


def test_a_companion_that_has_gone(output: Path, tmp_path: Path) -> None:
    with pytest.raises(JobFailed) as caught:
        staged(output).copy(tmp_path / "config.json")
    assert failure(caught) == "input_unreadable"


def test_the_writer_never_creates_a_file(tmp_path: Path) -> None:
    with pytest.raises(JobFailed) as caught:
        FileWriter(tmp_path / "none")
    assert failure(caught) == "output_unwritable"
    assert list(tmp_path.iterdir()) == []


def test_the_writer_goes_on_after_a_short_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(20))
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:3], offset))
    with FileWriter(path) as writer:
        writer.write_at(memoryview(bytes(range(8))).cast("B", (2, 4)), 5)
        writer.write_at(memoryview(b""), 0)
    assert path.read_bytes() == bytes(5) + bytes(range(8)) + bytes(7)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_while_writing() -> None:
    with FileWriter(Path("/dev/full")) as writer, pytest.raises(JobFailed) as caught:
        writer.write_at(memoryview(b"x"), 0)
    assert failure(caught) == "disk_full"


def test_a_quota_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.touch()

    def over_quota(*args: object) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "pwrite", over_quota)
    with FileWriter(path) as writer, pytest.raises(JobFailed) as caught:
        writer.write_at(memoryview(b"x"), 0)
    assert failure(caught) == "disk_full"


def test_a_write_beyond_the_size_limit_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    code = f"""
import resource
from pathlib import Path
from taumerge.errors import JobFailed
from workers.checkpoints.writing import FileWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
with FileWriter(Path({str(path)!r})) as writer:
    try:
        writer.write_at(memoryview(bytes(20)), 0)
    except JobFailed as error:
        print(error.code)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "output_unwritable"


def test_an_attempt_killed_while_writing_shows_nothing(output: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from workers.checkpoints.layout import lay_out
from workers.checkpoints.writing import FileWriter, Staging
files = lay_out([("a", "F32", (4,)), ("b", "F32", (8,))], stem="model", max_shard_bytes=32,
                metadata={{"format": "pt"}})
staging = Staging(Path({str(output)!r}), {IDENTITY!r})
staging.create(files)
staging.finish(files[0].name, {{"sha256": "0"}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run([sys.executable, "-c", code], check=False)
    assert result.returncode == -signal.SIGKILL
    assert not output.exists()
    staging = staged(output)
    assert staging.finished() == {FILES[0].name: {"sha256": "0"}}
    staging.discard()
    assert list(output.parent.iterdir()) == []


def test_digests_and_free_space(tmp_path: Path) -> None:
    path = tmp_path / "x"
    content = os.urandom(3_000_001)
    path.write_bytes(content)
    assert sha256_of(path) == hashlib.sha256(content).hexdigest()
    status = os.statvfs(tmp_path)
    free = free_bytes(tmp_path / "not" / "there" / "yet")
    assert abs(free - status.f_bavail * status.f_frsize) < 2**30
    assert free != status.f_bavail


def test_syncing_what_is_not_there(tmp_path: Path) -> None:
    sync(tmp_path)
    with pytest.raises(JobFailed) as caught:
        sync(tmp_path / "none")
    assert failure(caught) == "output_unwritable"


def test_rename_new_loses_the_race_against_a_full_directory(tmp_path: Path, rename_kind: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (target / "kept").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os.path, "lexists", lambda path: False)  # it appears right after the check
        with pytest.raises(FileExistsError):
            rename_new(source, target)
    assert (target / "kept").exists()


def test_exchange_swaps_a_file_and_a_directory(tmp_path: Path, rename_kind: str) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.write_text("other")
    exchange(one, other)
    assert one.read_text() == "other"
    assert other.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


def test_systems_without_renameat2_use_plain_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renaming, "_libc", object())
    (tmp_path / "source").mkdir()
    rename_new(tmp_path / "source", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
