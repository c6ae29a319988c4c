"""Only what passed is promoted; aliases move and roll back; a version leads to its run and its files."""

import hashlib
import json
import shutil
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from pi_incubator.cli import export as export_command
from pi_incubator.config import ExperimentConfig
from pi_incubator.deploy.gates._base import Result
from pi_incubator.deploy.gates._verdict import mark
from pi_incubator.deploy.promotion import check_gates, registered_name, versions
from pi_incubator.errors import UserError
from pi_incubator.registry import gates
from pi_incubator.run_folder import open_run
from pi_incubator.runtime import read_bundle
from pi_incubator.tracking import make_tracker

NAME = "standing"


@pytest.fixture(scope="module")
def run(standing):
    """The run, which MLflow has tracked, and a bundle of it that no gate has seen."""
    cfg, folder = open_run(str(standing.path), "cpu")
    with make_tracker(cfg, folder):
        pass
    export_command.main([str(folder.path), "--out", str(folder.path / "fresh"), "--episodes", "1"])
    return folder


@pytest.fixture(scope="module")
def client(run):
    uri = f"sqlite:///{run.path.parent / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture(scope="module")
def bundles(run):
    """Three bundles that passed, all different."""
    return [passed(run, f"passed_{number}", 0.95 + 0.01 * number) for number in range(3)]


def passed(run, name, value):
    bundle = shutil.copytree(run.path / "fresh", run.path / name)
    mark(bundle, {gate: Result(True, value, 0.9, "share") for gate in gates.names()})
    return bundle


def command(*arguments):
    assert export_command.main([str(argument) for argument in arguments]) == 0


def aliases(client):
    return {alias: int(version) for alias, version in client.get_registered_model(NAME).aliases.items()}


def test_aliases_move_and_roll_back(run, client, bundles, capsys):
    command("promote", bundles[0])
    assert aliases(client) == {"candidate": 1}
    command("promote", bundles[0], "--alias", "champion")  # the same bundle is the same version
    assert aliases(client) == {"candidate": 1, "champion": 1}
    for bundle in bundles[1:]:
        command("promote", bundle, "--alias", "champion")
    assert aliases(client) == {"candidate": 1, "champion": 3}
    capsys.readouterr()
    command("rollback", run.path)
    assert capsys.readouterr().out == f"{NAME} version 2 is champion again\n"
    assert aliases(client)["champion"] == 2
    command("promote", bundles[2], "--alias", "champion")
    command("rollback", run.path)
    command("rollback", run.path)
    assert aliases(client)["champion"] == 1
    with pytest.raises(UserError, match="no champion before"):
        command("rollback", run.path)
    capsys.readouterr()
    command("list", run.path)
    shown = capsys.readouterr().out
    assert "candidate, champion" in shown
    assert all(version in shown for version in "123")


def test_looking_makes_no_store(run, tmp_path, capsys):
    elsewhere = shutil.copytree(run.path, tmp_path / run.path.name)
    command("list", elsewhere)
    assert "nothing is registered" in capsys.readouterr().out
    with pytest.raises(UserError, match="no champion before"):
        command("rollback", elsewhere)
    assert list(tmp_path.iterdir()) == [elsewhere]
    config = elsewhere / "config.yaml"
    missing = f"sqlite:///{tmp_path}/nowhere/mlflow.db"
    settings = yaml.safe_load(config.read_text())
    settings["tracking"]["uri"] = missing
    config.write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=r"tracking\.uri = .* cannot be opened"):
        command("list", elsewhere)


def test_a_version_leads_to_its_run_and_its_files(run, client, bundles, tmp_path):
    command("promote", bundles[0])
    version = client.get_model_version_by_alias(NAME, "candidate")
    contract = read_bundle(bundles[0]).contract
    assert version.run_id == run.mlflow_run_id.read_text()
    assert client.get_run(version.run_id).info.run_name == NAME
    assert version.tags["config_sha256"] == contract.raw["config_sha256"]
    assert version.tags["git_commit"] == str(contract.raw["git_commit"])
    assert version.tags["gate.parity"] == "0.95"
    place = version.source.removeprefix(f"runs:/{version.run_id}/")
    copy = read_bundle(Path(client.download_artifacts(version.run_id, place, str(tmp_path))))
    assert copy.contract == contract
    assert copy.onnx == read_bundle(bundles[0]).onnx


def test_a_champion_that_was_named_by_hand_is_remembered(run, client, bundles):
    for bundle in bundles[:2]:
        command("promote", bundle)
    client.set_registered_model_alias(NAME, "champion", "1")
    command("promote", bundles[1], "--alias", "champion")
    command("rollback", run.path)
    assert aliases(client)["champion"] == 1


def test_what_has_not_passed_is_refused(run, tmp_path):
    def refused(bundle, match):
        with pytest.raises(UserError, match=match):
            command("promote", bundle, "--run", run.path)

    refused(run.path / "fresh", r"gates have not run \(latency, parity, robustness, sim_to_sim\)")
    failed = shutil.copytree(run.path / "fresh", tmp_path / "failed")
    mark(failed, {name: Result(name != "parity", 1.0, 0.9, "share") for name in gates.names()})
    refused(failed, r"gates failed \(parity\)")
    some = shutil.copytree(run.path / "fresh", tmp_path / "some")
    mark(some, {"parity": Result(True, 1.0, 0.9, "share")})
    refused(some, "gates have not run")
    with (some / "policy.onnx").open("ab") as file:
        file.write(b"x")
    refused(some, "SHA-256")
    refused(tmp_path / "nothing", "cannot be read")


@pytest.mark.parametrize("passed_", [False, None, "true", 1, "missing"])
def test_a_gate_whose_contract_does_not_say_passed_is_refused(bundles, tmp_path, sign_anew, passed_):
    """The verdict in the contract counts, also where no file marks the bundle as failed."""
    bundle = shutil.copytree(bundles[0], tmp_path / "claims")
    contract = json.loads((bundle / "contract.json").read_text())
    if passed_ == "missing":
        del contract["gates"]["latency"]["passed"]
    else:
        contract["gates"]["latency"]["passed"] = passed_
    (bundle / "contract.json").write_text(json.dumps(contract))
    sign_anew(bundle)
    assert not (bundle / "FAILED_GATES").exists()
    with pytest.raises(UserError, match=r"gates failed \(latency\)"):
        check_gates(read_bundle(bundle))


def test_a_mark_of_failure_is_enough(run, bundles, tmp_path, sign_anew):
    """Whatever the contract says, a bundle with the file is not promoted."""
    bundle = shutil.copytree(bundles[0], tmp_path / "marked")
    (bundle / "FAILED_GATES").write_text("parity\n")
    sign_anew(bundle)
    with pytest.raises(UserError, match="gates failed"):
        command("promote", bundle, "--run", run.path)
    check_gates(read_bundle(bundles[0]))


def test_a_refused_bundle_changes_nothing(run, client, bundles, tmp_path):
    """No version, no alias and no run appear of it."""
    command("promote", bundles[0])
    before = [version.version for version in client.search_model_versions()], aliases(client)
    failed = shutil.copytree(run.path / "fresh", tmp_path / "failed")
    mark(failed, {name: Result(name != "latency", 1.0, 0.9, "share") for name in gates.names()})
    for alias in ("candidate", "champion"):
        with pytest.raises(UserError, match=r"gates failed \(latency\)"):
            command("promote", failed, "--run", run.path, "--alias", alias)
    assert ([version.version for version in client.search_model_versions()], aliases(client)) == before


def test_a_list_says_what_each_version_is(run, client, bundles):
    """Newest first; what was never said stays empty."""
    for bundle in bundles[:2]:
        command("promote", bundle, "--alias", "champion")
    cfg, folder = open_run(str(run.path), "cpu")
    rows = versions(cfg, folder)
    assert [int(number) for number in rows] == sorted(map(int, rows), reverse=True)
    contract = read_bundle(bundles[1]).contract.raw
    champion = rows[str(aliases(client)["champion"])]
    assert champion["aliases"] == "champion"
    assert champion["precision"] == "fp32"
    assert champion["sim_to_sim"] == 0.96
    assert champion["config"] == contract["config_sha256"][:8]
    assert champion["git_commit"] == str(contract["git_commit"])[:8]
    assert champion["run"] == run.mlflow_run_id.read_text()[:8]
    made_utc = datetime.strptime(champion["created_utc"], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - made_utc) < timedelta(hours=1)
    client.create_model_version(NAME, "file:///nowhere", None)
    empty = versions(cfg, folder)
    by_hand = next(iter(empty.values()))
    assert len(empty) == len(rows) + 1
    assert (by_hand["aliases"], by_hand["sim_to_sim"], by_hand["precision"]) == ("", None, None)
    assert (by_hand["run"], by_hand["git_commit"], by_hand["config"]) == ("", "", "")
    client.delete_model_version(NAME, next(iter(empty)))


def test_the_history_keeps_each_champion_once_in_a_row(run, client, bundles):
    """Promoting the champion again is no step that a rollback could go back to."""
    client.delete_registered_model_tag(NAME, "champion_history")
    client.delete_registered_model_alias(NAME, "champion")
    for bundle in (bundles[0], bundles[0], bundles[1], bundles[1]):
        command("promote", bundle, "--alias", "champion")
    history = json.loads(client.get_registered_model(NAME).tags["champion_history"])
    assert len(history) == 2
    command("rollback", run.path)
    assert aliases(client)["champion"] == history[0]
    assert json.loads(client.get_registered_model(NAME).tags["champion_history"]) == history[:1]


def test_an_archive_is_promoted_as_one_file(run, client, bundles, tmp_path):
    """The same archive is the same version; what comes back has the same bytes."""
    archive = tmp_path / "bundle.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(bundles[2], "bundle")
    for _ in range(2):
        command("promote", archive, "--run", run.path)
    version = client.get_model_version_by_alias(NAME, "candidate")
    place = version.source.removeprefix(f"runs:/{version.run_id}/")
    copy = Path(client.download_artifacts(version.run_id, place, str(tmp_path))) / archive.name
    assert copy.read_bytes() == archive.read_bytes()
    assert version.tags["bundle_sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    same = [
        v for v in client.search_model_versions() if v.tags["bundle_sha256"] == version.tags["bundle_sha256"]
    ]
    assert len(same) == 1


@pytest.mark.parametrize(
    ("name", "registered"),
    [("a/b", "a%2Fb"), ("100%", "100%25"), ("x:y'z\"`\\", "x%3Ay%27z%22%60%5C"), ("ü-1 .", "ü-1 .")],
)
def test_names_that_mlflow_does_not_take_are_written_out(name, registered):
    cfg = ExperimentConfig()
    object.__setattr__(cfg.experiment, "name", name)
    assert registered_name(cfg) == registered


def test_a_cut_or_foreign_archive_is_refused(run, tmp_path):
    archive = tmp_path / "cut.tar.gz"
    archive.write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(UserError, match="cut short"):
        command("promote", archive, "--run", run.path)


def test_a_run_that_was_not_tracked_gets_a_run_for_its_lineage(run, bundles, tmp_path):
    moved = shutil.copytree(run.path, tmp_path / "elsewhere" / NAME)
    command("promote", moved / bundles[0].name, "--alias", "champion")
    uri = f"sqlite:///{moved.parent / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    version = client.get_model_version_by_alias(NAME, "champion")
    assert client.get_run(version.run_id).info.status == "FINISHED"
    assert (moved / "mlflow_run_id").read_text() == version.run_id  # the next bundle belongs to the same run
    assert json.loads(client.get_registered_model(NAME).tags["champion_history"]) == [1]
