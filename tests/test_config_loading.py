import pytest

from raysrec.config.files import ConfigError
from raysrec.config.loading import load


@pytest.fixture
def file(tmp_path):
    """A YAML file with this text."""

    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.fixture
def base(file):
    return file("base.yaml", "model: {name: recgrela, dim: 16}\ntrain: {epochs: 3, seed: 1}\n")


def test_later_files_and_overrides_win_key_by_key(base, file):
    above = file("above.yaml", "train: {epochs: 7}\nmodel: {num_blocks: 2}\n")
    config = load([base, above], ["train.seed=9", "train.seed=10"])
    assert (config.train.epochs, config.train.seed) == (7, 10)
    assert (config.model.dim, config.model.num_blocks) == (16, 2)
    assert load([above, base]).train.epochs == 3


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("train.epochs=3", lambda c: c.train.epochs, 3),
        ("train.learning_rate=5e-4", lambda c: c.train.learning_rate, 5e-4),
        ("train.learning_rate=1.0e-3", lambda c: c.train.learning_rate, 1e-3),
        ("evaluate.exclude_seen=true", lambda c: c.evaluate.exclude_seen, True),
        ("evaluate.ks=[1, 10]", lambda c: c.evaluate.ks, (1, 10)),
        ("train.betas=[0.9, 0.98]", lambda c: c.train.betas, (0.9, 0.98)),
        ("data.user_interactions=[5,inf)", lambda c: c.data.user_interactions, "[5,inf)"),
        ("data.user_interactions=[50,500]", lambda c: c.data.user_interactions, "[50,500]"),
        ("data.item_interactions=(4,inf)", lambda c: c.data.item_interactions.low, 5),
        ("data.separator='::'", lambda c: c.data.separator, "::"),
        ("data.separator=;", lambda c: c.data.separator, ";"),
        ("data.separator=,", lambda c: c.data.separator, ","),
        ("data.source=s3://bucket/a=b.csv", lambda c: c.data.source, "s3://bucket/a=b.csv"),
        ("storage.name='2024'", lambda c: c.storage.name, "2024"),
        (
            "engine={name: deepspeed, extra: {zero_optimization: {overlap_comm: true}}}",
            lambda c: c.engine.extra,
            {"zero_optimization": {"overlap_comm": True}},
        ),
        ("engine={name: deepspeed, extra: {a: {b: 1}}}", lambda c: c.engine.extra, {"a": {"b": 1}}),
    ],
)
def test_the_value_of_an_override_is_read_as_yaml(base, override, read, expected):
    assert read(load([base], [override])) == expected


@pytest.mark.parametrize("text", ["train.epochs", "=3", "--epochs"])
def test_what_is_no_setting_is_refused_with_an_example(base, text):
    with pytest.raises(ConfigError, match=r"is no setting; write section\.key=value, for example train\.epochs=3"):
        load([base], [text])


def test_a_missing_file_is_refused_with_the_nearest_name(file, tmp_path):
    file("netflix.yaml", "")
    with pytest.raises(ConfigError, match=r"netflx\.yaml: there is no such file; did you mean netflix\.yaml\?$"):
        load([tmp_path / "netflx.yaml"])
    with pytest.raises(ConfigError, match=r"zzz\.yaml: there is no such file$"):
        load([tmp_path / "zzz.yaml"])
    with pytest.raises(ConfigError, match=r"there is no such file$"):
        load([tmp_path / "nowhere" / "netflix.yaml"])


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is a folder; name a YAML file in it"):
        load([tmp_path])


def test_broken_yaml_is_refused_in_one_line_with_its_line_number(file):
    broken = file("broken.yaml", "model:\n  name: recgrela\ntrain: {epochs: 3\ndata: x\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml: is not YAML: .*line 4") as error:
        load([broken])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("train: {epochs: 3}\ntrain: {batch_targets: 7}\n", "train", 2),
        ("train:\n  epochs: 3\n  epochs: 4\n", "epochs", 3),
    ],
)
def test_a_key_that_stands_twice_is_refused_since_one_of_them_would_be_lost(file, text, key, line):
    with pytest.raises(ConfigError, match=rf"twice\.yaml: .*{key} stands twice .*line {line}"):
        load([file("twice.yaml", text)])


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: is not YAML"):
        load([tmp_path / "binary.yaml"])


def test_a_file_without_sections_is_refused_and_an_empty_one_says_nothing(base, file):
    with pytest.raises(ConfigError, match="holds a list, expected sections such as data: and model:"):
        load([file("list.yaml", "- a\n- b\n")])
    assert load([base, file("empty.yaml", "# nothing\n")]) == load([base])
