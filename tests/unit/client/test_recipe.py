from __future__ import annotations

import pytest

from taumerge import InvalidRequest, load_recipe


def test_yaml_and_json_say_the_same(tmp_path):
    (tmp_path / "r.yaml").write_text("base: ~/b  # as it stands\nmodels:\n  - uri: ft\n")
    (tmp_path / "r.json").write_text('\ufeff{\n\t"base": "~/b",\n\t"models": [{"uri": "ft"}]\n}')
    expected = {"base": "~/b", "models": [{"uri": "ft"}]}
    assert load_recipe(tmp_path / "r.yaml") == expected
    assert load_recipe(str(tmp_path / "r.json")) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.yaml", b"a: 1\nb: [", "r.yaml:2:5: not YAML"),
        ("r.yaml", b"a: !!python/object:os.system {}", "not YAML"),
        ("r.yaml", b"a: 2026-13-40", "not YAML"),
        ("r.yaml", b"[" * 1000, "not YAML"),
        ("r.json", b'{"a": 1,\n "b": }', "r.json:2:7: not JSON"),
        ("r.yaml", b"\xff\xfe\x00", "is not UTF-8"),
        ("r.json", b"[]", "is a mapping"),
        ("r.json", b'{"scaling": 0.3, "scaling": 1.0}', "'scaling' stands twice"),
        ("r.yaml", b"method: {name: cclip, rho: 1, rho: 2}", "'rho' stands twice"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidRequest) as raised:
        load_recipe(tmp_path / name)
    assert message in str(raised.value)
    assert raised.value.errors[0].loc == ()


def test_yaml_may_override_what_it_merges_in(tmp_path):
    (tmp_path / "r.yaml").write_text("models:\n  - &a {uri: x, weight: 1}\n  - {<<: *a, uri: y}\n")
    assert load_recipe(tmp_path / "r.yaml")["models"][1] == {"uri": "y", "weight": 1}


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(InvalidRequest, match="cannot be read"):
            load_recipe(path)
