"""What the command line answers: facts on stdout, one line on stderr when something is wrong, and the exit code."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from comms.address import BadAddress
from comms.channel import InsecureAddress
from comms.errors import Unreachable
from dist_train.config import ConfigError, load
from launcher.cli import run
from launcher.failures import LaunchError, exit_code, one_line
from launcher.lock import hold_lock

TinyRun = Callable[..., Path]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str]:
    """The exit code and the one line on stderr."""
    code = run(arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dist-train: ")
    assert captured.err.count("\n") == 1
    return code, captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command"),
        (["launch"], "RUN.toml"),
        (["report", "--nonsense", "x"], "--nonsense"),
        (["launch", "nothing.toml"], "nothing.toml: no such file"),
        (["report", "nothing"], "nothing: no run is kept here"),
        (["export", "nothing", "out"], "nothing: no run is kept here"),
        (["export", "nothing"], "OUT_DIR' (see dist-train export --help)"),
        (["lanch"], "did you mean launch?"),
        (["reech"], "No such command 'reech'"),
        (["report", "x", "--output", "page.html"], "--output does nothing without --html"),
        (["simulate", "x", "--like", "y"], "--like does nothing without --virtual"),
        (["simulate", "x", "--what-if", "--virtual"], "--virtual does nothing beside --what-if"),
        (["simulate", "x", "outer.rounds=2", "--what-if"], "section.key=value does nothing beside --what-if"),
        (["simulate", "x", "--what-if", "--link", "50mbit,40ms,1ms"], "ends with a jitter"),
        (["join", "foo"], "address 'foo' is not of the form host:port"),
        (["doctor", "--bootstrap", "/ip4/127.0.0.1/tcp/1/p2p/Qm1"], "--bootstrap does nothing without ADDRESS"),
        (["doctor", "foo"], "address 'foo' is not of the form host:port"),
        (["join", "127.0.0.1:1", "--device", "tpu"], 'join: replica "'),
        (["join", "127.0.0.1:1", "--id", "../x"], 'join: replica "../x": id: use 1 to 64 letters'),
    ],
)
def test_usage_errors_are_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, line = refused(capsys, arguments)
    assert code == 2
    assert said in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("outer.round=3", "did you mean rounds?"),
        ("outer.rounds=none", "outer.rounds"),
        ("rounds", "section.key=value"),
        ("data.source=text:nowhere/*.txt", "matches no file"),
        ("data.source=nonsense", "data.source"),
        ("data.tokenizer=nowhere", "data.tokenizer"),
        ("model.path=nowhere", "model.path"),
        ("exchange.min_replicas=9", "exchange.min_replicas"),
        ("exchange.address=foo", "exchange.address"),
    ],
)
def test_config_errors_start_nothing(
    capsys: pytest.CaptureFixture[str], tiny_run: TinyRun, override: str, said: str
) -> None:
    file = tiny_run()
    code, line = refused(capsys, ["launch", str(file), override])
    assert code == 2
    assert said in line
    assert not (file.parent / "run").exists()


def test_what_should_be_a_folder_is_no_file(capsys: pytest.CaptureFixture[str], tiny_run: TinyRun) -> None:
    file = tiny_run()
    kept = file.parent / "kept"
    kept.mkdir()
    (kept / "config.toml").write_text(load(file).to_toml())
    for arguments in (["export", str(kept), str(file)], ["certs", str(file / "certs"), "--member", "a"]):
        code, line = refused(capsys, arguments)
        assert (code, f"{file} is a file; name a folder" in line) == (2, True)
    for place in (file, file / "run"):
        code, line = refused(capsys, ["launch", str(file), f"run.directory={place}"])
        assert code == 2
        assert f"{file} is a file; name a folder" in line


PIPELINE = """
[[replica]]
id = "c"
pipeline = ["old1", "old2"]
"""


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("rank_k = 17", "rank_k = 17 is above model.hidden_size = 16"),
        ("split = [2, 0]", "leaves stage old2 with no layers"),
        ("split = [2, 1]", "adds up to 3"),
        ('basis = "fitted"\ncompression = "subspace"', 'choose "projected-stream", or basis = "seeded"'),
        ("ranks = 2", "leave one of the two keys out"),
    ],
)
def test_a_pipeline_that_cannot_be_starts_nothing(
    capsys: pytest.CaptureFixture[str], tiny_run: TinyRun, keys: str, said: str
) -> None:
    file = tiny_run()
    file.write_text(file.read_text().replace("layers = 1", "layers = 2") + PIPELINE + keys)
    code, line = refused(capsys, ["launch", str(file)])
    assert code == 2
    assert said in line
    assert not (file.parent / "run").exists()


def test_a_model_with_a_tied_head_or_too_few_layers_starts_nothing(
    capsys: pytest.CaptureFixture[str], tiny_run: TinyRun, tmp_path: Path
) -> None:
    """What only the model's own config tells."""
    file = tiny_run()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    for changes, said in (
        ({"tie_word_embeddings": True}, "tied to its embedding"),
        ({"num_hidden_layers": 1}, "has no layers"),
        ({"hidden_size": 8, "head_dim": 8}, "rank_k = 12 must be 1 to the model's hidden size, 8"),
    ):
        architecture = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 256, **sizes}
        architecture |= {"num_hidden_layers": 2, "tie_word_embeddings": False, **changes}
        (tmp_path / "config.json").write_text(json.dumps(architecture))
        text = tiny_run().read_text().replace("[model]", f'[model]\npath = "{tmp_path}"')
        file.write_text(text + PIPELINE + "rank_k = 12")
        code, line = refused(capsys, ["launch", str(file)])
        assert code == 2
        assert said in line
        assert not (file.parent / "run").exists()


def test_a_replica_cannot_be_called_coordinator(capsys: pytest.CaptureFixture[str], tiny_run: TinyRun) -> None:
    file = tiny_run()
    file.write_text(file.read_text().replace('id = "b"', 'id = "coordinator"'))
    code, line = refused(capsys, ["launch", str(file)])
    assert code == 2
    assert "choose another" in line


def test_another_runs_directory_is_left_alone(capsys: pytest.CaptureFixture[str], tiny_run: TinyRun) -> None:
    file = tiny_run()
    kept = file.parent / "run" / "config.toml"
    kept.parent.mkdir()
    kept.write_text(load(file, ["run.seed=7"]).to_toml())
    (kept.parent / "metrics.jsonl").write_text('{"round": 1}\n')
    before = kept.read_text()
    code, line = refused(capsys, ["launch", str(file)])
    assert code == 2
    assert "run.seed is 7 there and 0 here" in line
    assert kept.read_text() == before


def test_a_directory_in_use_is_refused(capsys: pytest.CaptureFixture[str], tiny_run: TinyRun) -> None:
    file = tiny_run()
    with hold_lock(file.parent / "run"):
        code, line = refused(capsys, ["launch", str(file)])
    assert code == 1
    assert "another launch is running here" in line


def test_a_coordinator_that_cannot_start_is_quoted(capsys: pytest.CaptureFixture[str], tiny_run: TinyRun) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, line = refused(capsys, ["launch", str(tiny_run()), f"exchange.address={address}"])
    assert code == 1
    assert "the coordinator did not start" in line
    assert f"cannot listen at {address}" in line
    assert "coordinator.log" in line


def test_a_complete_run_says_so(capsys: pytest.CaptureFixture[str], tiny_run: TinyRun) -> None:
    file = tiny_run(rounds=1)
    directory = file.parent / "run"
    (directory / "checkpoints" / "round-1").mkdir(parents=True)
    (directory / "config.toml").write_text(load(file).to_toml())
    (directory / "metrics.jsonl").write_text('{"round": 1}\n')
    assert run(["launch", str(file)]) == 0
    captured = capsys.readouterr()
    assert "tiny is complete" in captured.out
    assert "dist-train report" in captured.out
    assert captured.err == ""


def test_a_dry_run_says_what_would_be_started(capsys: pytest.CaptureFixture[str], tiny_run: TinyRun) -> None:
    file = tiny_run()
    assert run(["launch", str(file), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [process["member"] for process in plan["processes"]] == ["coordinator", "a", "b"]
    assert plan["standing"] == "new"
    assert plan["config_digest"] == load(file).digest()
    assert run(["launch", str(file), "outer.rounds=9", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "9 rounds" in text
    assert "--id b --coordinator HOST:PORT" in text
    assert not (file.parent / "run").exists()


def test_the_cores_are_shared_out_unless_the_user_did(
    capsys: pytest.CaptureFixture[str], tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    arguments = ["launch", str(tiny_run()), "--dry-run", "--json"]
    run(arguments)
    environment = json.loads(capsys.readouterr().out)["processes"][1]["environment"]
    assert int(environment["OMP_NUM_THREADS"]) >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run(arguments)
    assert "OMP_NUM_THREADS" not in json.loads(capsys.readouterr().out)["processes"][1]["environment"]


def test_a_report_of_a_run_without_a_round(capsys: pytest.CaptureFixture[str], tiny_run: TinyRun) -> None:
    file = tiny_run()
    directory = file.parent / "run"
    with hold_lock(directory):
        (directory / "config.toml").write_text(load(file).to_toml())
        assert run(["report", str(directory), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["status"] == "running"
    assert run(["report", str(directory)]) == 0
    assert "interrupted" in capsys.readouterr().out


def test_help_lists_what_people_type_and_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("launch", "report", "export", "certs", "stop"))
    assert "coordinate" not in shown
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dist-train ")
    assert run([]) == 2


@pytest.mark.parametrize("command", ["launch", "join", "report", "export", "certs", "stop", "coordinate", "replica"])
def test_every_command_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run([command, "--help"]) == 0
    assert f"Example: dist-train {command} " in capsys.readouterr().out


def test_who_mistypes_a_command_is_not_told_of_hidden_ones(capsys: pytest.CaptureFixture[str]) -> None:
    _, line = refused(capsys, ["atend"])
    assert "attend?" not in line


def test_a_folder_for_a_file_names_the_file(
    capsys: pytest.CaptureFixture[str], tiny_run: TinyRun, tmp_path: Path
) -> None:
    assert "is a folder" in refused(capsys, ["launch", str(tmp_path)])[1]
    (tmp_path / "config.toml").write_text(load(tiny_run()).to_toml())
    code, line = refused(capsys, ["launch", str(tmp_path)])
    assert code == 2
    assert f"{tmp_path / 'config.toml'} for the run that is kept here" in line


def test_an_address_is_checked_before_anybody_is_asked_to_stop(
    capsys: pytest.CaptureFixture[str], tiny_run: TinyRun
) -> None:
    file = tiny_run()
    directory = file.parent / "run"
    directory.mkdir()
    (directory / "config.toml").write_text(load(file).to_toml())
    for address, said in (("foo", "not of the form host:port"), ("192.0.2.7:7000", "not on this machine")):
        code, line = refused(capsys, ["stop", str(directory), "--coordinator", address])
        assert (code, said in line) == (2, True)


def test_the_command_line_is_quick_to_load() -> None:
    script = "import sys, launcher.cli; print([m for m in ('torch', 'grpc', 'transformers') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert found.stdout == "[]\n"


def test_a_reader_that_leaves_early_is_no_bug() -> None:
    script = "import sys; sys.stdin.read(); from launcher.cli import main; sys.argv[1:] = ['--version']; main()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(timeout=30)
    assert errors == ""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("bad key"), 2, "bad key"),
        (BadAddress("no port"), 2, "no port"),
        (InsecureAddress("plain text"), 2, "plain text"),
        (LaunchError("in use"), 1, "in use"),
        (Unreachable("nobody\nthere"), 1, "nobody there"),
        (FileNotFoundError(2, "No such file", "x.toml"), 1, "x.toml: No such file"),
        (OSError("odd"), 1, "odd"),
        (TimeoutError(), 1, "TimeoutError"),
        (RuntimeError("a bug"), None, "a bug"),
        (ValueError("a bug"), None, "a bug"),
    ],
)
def test_expected_errors_have_a_code_and_bugs_have_none(error: Exception, code: int | None, line: str) -> None:
    assert exit_code(error) == code
    assert one_line(error) == line
