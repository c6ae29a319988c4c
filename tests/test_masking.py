"""Secrets: neither settings that are stored nor lines that are printed hold them."""

import pytest

from pi_incubator.config import ConfigError, ExperimentConfig, load_config, save_config
from pi_incubator.errors import UserError
from pi_incubator.masking import masked, without_credentials
from pi_incubator.provenance import config_hash, flatten
from pi_incubator.run_folder import RunFolder, begin
from pi_incubator.tracking import make_tracker

ADDRESS = "http://me:hidden-word@127.0.0.1:9/mlflow"


@pytest.mark.parametrize(
    ("address", "shown", "stored"),
    [
        ("https://me:pass@host/x", "https://me:***@host/x", "https://host/x"),
        ("https://me:p@ss@host", "https://me:***@host", "https://host"),
        ("https://token123@host", "https://***@host", "https://host"),
        ("postgresql+psycopg2://me:pass@db:5432/x", "postgresql+psycopg2://me:***@db:5432/x", None),
        ("https://host/x?api_token=abc&y=1", "https://host/x?api_token=***&y=1", None),
        ("https://host:8080/a:b@c", "https://host:8080/a:b@c", "https://host:8080/a:b@c"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("runs/me:pass@host", "runs/me:pass@host", "runs/me:pass@host"),
    ],
)
def test_credentials_inside_of_addresses_are_hidden(address, shown, stored):
    assert masked(f"cannot reach {address}, sorry") == f"cannot reach {shown}, sorry"
    hidden = without_credentials(address)
    assert "pass" not in hidden or hidden == address
    if stored:
        assert hidden == stored
    assert without_credentials(hidden) == hidden


@pytest.mark.parametrize(
    "name", ["MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"]
)
def test_values_of_secret_variables_are_hidden_wherever_they_stand(monkeypatch, name):
    monkeypatch.setenv(name, "correct horse")
    assert masked("401: correct horse was refused") == "401: *** was refused"
    assert "correct horse" not in str(UserError("login with correct horse failed"))


def test_other_variables_are_not_secret(monkeypatch):
    monkeypatch.setenv("TOKENIZERS", "wordpiece")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    assert masked("a wordpiece") == "a wordpiece"


def config(tmp_path, **tracking):
    place = {"name": "run", "output_dir": str(tmp_path)}
    return ExperimentConfig.model_validate({"experiment": place, "tracking": tracking})


def test_nothing_that_a_run_writes_or_prints_holds_the_password(tmp_path, capfd):
    cfg = config(tmp_path, uri=ADDRESS)
    nowhere = cfg.tracking.model_copy(update={"backend": "none"})  # no server answers at the address
    cfg = cfg.model_copy(update={"tracking": nowhere})
    with RunFolder(cfg) as folder:
        begin(cfg, folder)
        with make_tracker(cfg, folder) as tracker:
            tracker.log(0, 1, {"x": 1.0})
    printed = "".join(capfd.readouterr())
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "tracking.uri=http://127.0.0.1:9/mlflow" in printed
    assert "hidden-word" not in printed + written
    assert flatten(cfg)["tracking.uri"] == "http://127.0.0.1:9/mlflow"
    assert "uri: http://127.0.0.1:9/mlflow\n" in folder.config.read_text()
    assert cfg.tracking.uri == ADDRESS  # what is used is what was given


def test_an_error_about_the_address_does_not_show_the_password(tmp_path):
    cfg = config(tmp_path, uri=f"foo://me:{'hidden-word'}@host")
    folder = RunFolder(cfg)
    folder.path.mkdir()
    with pytest.raises(ConfigError) as error:
        make_tracker(cfg, folder)
    assert "foo://me:***@host" in str(error.value)
    assert "hidden-word" not in str(error.value)


def test_settings_without_credentials_are_saved_as_they_are(tmp_path):
    cfg = config(tmp_path, uri="http://host:5000")
    save_config(cfg, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == cfg


def test_a_changed_password_is_no_other_experiment(tmp_path):
    first, second = (config(tmp_path, uri=f"http://me:{word}@host") for word in ("one", "two"))
    assert config_hash(first) == config_hash(second)
