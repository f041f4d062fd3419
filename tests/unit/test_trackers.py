"""Trackers: what they are given, that a resumed run stays one run, and that none of them can harm
the training. The packages are played by small fakes; the real ones are tried where installed."""

import json
import math
import sys
import threading
import time
from fractions import Fraction
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from weighted_mtp.core.errors import UserError
from weighted_mtp.pipelines.tracking import backends as tracker_backends
from weighted_mtp.pipelines.tracking import trackers
from weighted_mtp.pipelines.tracking.backends import scalars
from weighted_mtp.pipelines.tracking.trackers import BackgroundTracker, make_trackers

RECIPE = {
    "pipeline": "baseline",
    "training": {"learning_rate": 1e-3, "betas": [0.9, 0.95], "early_stopping": None},
    "data": {"train": "rows.jsonl"},
}
FLAT = {
    "pipeline": "baseline",
    "training.learning_rate": 1e-3,
    "training.betas": "[0.9, 0.95]",
    "training.early_stopping": None,
    "data.train": "rows.jsonl",
}
SECRET = "hunter2-of-the-environment"


class Calls(list):
    """What a fake package was asked to do, in order."""

    def of(self, name):
        return [arguments for called, arguments in self if called == name]


def fake_tensorboard(monkeypatch):
    calls = Calls()

    class SummaryWriter:
        def __init__(self, log_dir, purge_step=None):
            calls.append(("writer", (log_dir, purge_step)))

        def add_scalar(self, tag, value, step):
            calls.append(("scalar", (tag, value, step)))

        def close(self):
            calls.append(("close", ()))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return calls


class FakeMlflowError(Exception):
    def __init__(self, message, error_code="INTERNAL_ERROR"):
        super().__init__(message)
        self.error_code = error_code


def fake_mlflow(monkeypatch):
    """`calls`, and `runs`: the ids the store knows. `calls.broken`: what every request raises."""
    calls = Calls()
    calls.runs, calls.experiments, calls.broken = [], {}, None

    class MlflowClient:
        def __init__(self, tracking_uri):
            calls.append(("client", tracking_uri))

        def get_experiment_by_name(self, name):
            if calls.broken:
                raise calls.broken
            return calls.experiments.get(name)

        def create_experiment(self, name, artifact_location):
            calls.append(("experiment", (name, artifact_location)))
            calls.experiments[name] = SimpleNamespace(experiment_id="7")
            return "7"

        def create_run(self, experiment_id, run_name):
            calls.runs.append(f"run-{len(calls.runs)}")
            calls.append(("run", (experiment_id, run_name)))
            return SimpleNamespace(info=SimpleNamespace(run_id=calls.runs[-1]))

        def update_run(self, run_id, status):
            if run_id not in calls.runs:
                raise FakeMlflowError("no such run", "RESOURCE_DOES_NOT_EXIST")
            if calls.broken:
                raise calls.broken
            calls.append(("update", (run_id, status)))

        def log_batch(self, run_id, metrics=(), params=()):
            if calls.broken:
                raise calls.broken
            calls.append(("batch", (run_id, list(metrics), list(params))))

        def set_terminated(self, run_id, status):
            calls.append(("end", (run_id, status)))

    module = ModuleType("mlflow")
    module.MlflowClient = MlflowClient
    entities, exceptions = ModuleType("mlflow.entities"), ModuleType("mlflow.exceptions")
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    entities.Param = lambda key, value: (key, value)
    exceptions.MlflowException = FakeMlflowError
    for part in (module, entities, exceptions):
        monkeypatch.setitem(sys.modules, part.__name__, part)
    return calls


def fake_wandb(monkeypatch):
    calls = Calls()

    class Run:
        def __init__(self, run_id):
            self.id = run_id or f"made-{len(calls.of('init'))}"

        def define_metric(self, name, **options):
            calls.append(("define", (name, options)))

        def log(self, figures):
            calls.append(("log", (self.id, figures)))

        def finish(self):
            calls.append(("finish", self.id))

    def init(**options):
        calls.append(("init", options))
        return Run(options["id"])

    module = ModuleType("wandb")
    module.Settings = lambda **options: options
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


FAKES = {"tensorboard": fake_tensorboard, "mlflow": fake_mlflow, "wandb": fake_wandb}


@pytest.fixture
def warned(monkeypatch):
    """Warnings, in words."""
    lines = []
    for module in (trackers, tracker_backends):
        monkeypatch.setattr(module.log, "warning", lambda text, *given: lines.append(text % given))
    return lines


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Nothing of the developer's own set-up, and one secret to look for."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WEIGHTED_MTP_TEST_TOKEN", SECRET)


def track(name, run_dir, *records, resume_step=0, params=RECIPE):
    """One stretch of a run with one tracker, opened, fed and closed."""
    (tracker,) = make_trackers([name], run_dir, params, resume_step)
    for record in records:
        tracker.log(*record)
    tracker.close()


def train(step, loss=0.5):
    return "train", step, {"loss": loss, "head_loss": [0.25, 0.75]}


# --- scalars ---------------------------------------------------------------------------------


def test_scalars_are_named_after_their_place():
    figures = {
        "loss": 1.5,
        "tokens": 12,
        "head_loss": [0.5, math.nan, 2.5],
        "weights": {"mean": 1.0, "by_head": (3, 4)},
        "none": [],
    }
    assert scalars("train", figures) == {
        "train/loss": 1.5,
        "train/tokens": 12.0,
        "train/head_loss/1": 0.5,
        "train/head_loss/3": 2.5,
        "train/weights/mean": 1.0,
        "train/weights/by_head/1": 3.0,
        "train/weights/by_head/2": 4.0,
    }


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), Fraction(1, 2), 0.5])
def test_every_kind_of_number_becomes_a_float(value):
    assert scalars("k", {"x": value}) == {"k/x": 0.5}
    assert type(scalars("k", {"x": value})["k/x"]) is float


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.5", None, True, object(), {}])
def test_what_is_no_finite_number_is_left_out(value):
    assert scalars("k", {"x": value, "y": [value]}) == {}


# --- the factory -----------------------------------------------------------------------------


def test_no_names_no_trackers_no_files(tmp_path):
    assert make_trackers([], tmp_path / "run", RECIPE, 0) == []
    assert not (tmp_path / "run").exists()


def test_an_unknown_name_is_refused_before_anything_starts(tmp_path, monkeypatch):
    calls = fake_tensorboard(monkeypatch)
    with pytest.raises(UserError, match=r"'tensorbord'.*tensorboard, mlflow, wandb"):
        make_trackers(["tensorboard", "tensorbord"], tmp_path, RECIPE, 0)
    assert calls == []


def test_a_name_given_twice_makes_one_tracker(tmp_path, monkeypatch):
    fake_wandb(monkeypatch)
    made = make_trackers(["wandb", "wandb"], tmp_path, RECIPE, 0)
    assert len(made) == 1
    made[0].close()


@pytest.mark.parametrize(
    ("name", "module"),
    [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow"), ("wandb", "wandb")],
)
def test_a_missing_package_is_said_with_the_command_that_installs_it(
    name, module, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as caught:
        make_trackers([name], tmp_path, RECIPE, 0)
    assert f"pip install 'weighted-mtp[{name}]'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "trackers.json").exists()


def test_a_tracker_that_cannot_start_is_a_user_error_and_closes_the_others(tmp_path, monkeypatch):
    board, store = fake_tensorboard(monkeypatch), fake_mlflow(monkeypatch)
    store.broken = ConnectionError("no route to http://me:s3cret@host:5000\nand more")
    with pytest.raises(UserError, match="mlflow cannot start") as caught:
        make_trackers(["tensorboard", "mlflow"], tmp_path, RECIPE, 0)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert board[-1] == ("close", ())


def test_a_spoiled_file_of_ids_is_a_user_error(tmp_path):
    (tmp_path / "trackers.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"trackers\.json: cannot be read; delete it"):
        make_trackers(["mlflow"], tmp_path, RECIPE, 0)


@pytest.mark.parametrize("name", FAKES)
def test_nothing_of_the_environment_is_handed_over(name, tmp_path, monkeypatch):
    calls = FAKES[name](monkeypatch)
    track(name, tmp_path / "run", train(1))
    assert calls
    assert SECRET not in repr(calls)


# --- TensorBoard -----------------------------------------------------------------------------


def test_tensorboard_gets_every_curve(tmp_path, monkeypatch):
    calls = fake_tensorboard(monkeypatch)
    track("tensorboard", tmp_path / "run", train(1), ("validation", 2, {"loss": 0.4}))
    assert calls.of("scalar") == [
        ("train/loss", 0.5, 1),
        ("train/head_loss/1", 0.25, 1),
        ("train/head_loss/2", 0.75, 1),
        ("validation/loss", 0.4, 2),
    ]
    assert calls.of("writer")[0][0] == str((tmp_path / "run" / "tensorboard").resolve())
    assert calls[-1] == ("close", ())


def test_tensorboard_hides_what_is_logged_again(tmp_path, monkeypatch):
    calls = fake_tensorboard(monkeypatch)
    track("tensorboard", tmp_path, resume_step=4)
    assert calls.of("writer")[0][1] == 5


# --- MLflow ----------------------------------------------------------------------------------


def test_mlflow_writes_to_a_local_file_unless_told_otherwise(tmp_path, monkeypatch):
    calls = fake_mlflow(monkeypatch)
    track("mlflow", tmp_path / "first")
    here = (tmp_path / "first").resolve()
    assert calls.of("client") == [f"sqlite:///{here}/mlflow.db"]
    assert calls.of("experiment") == [("weighted-mtp", (here / "mlflow-artifacts").as_uri())]
    assert calls.of("run") == [("7", "first")]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "heads")
    track("mlflow", tmp_path / "second")
    assert calls.of("client")[1:] == ["http://server:5000"]
    assert calls.of("experiment")[1:] == [("heads", None)]


def test_mlflow_gets_records_and_the_flat_recipe(tmp_path, monkeypatch):
    calls = fake_mlflow(monkeypatch)
    track("mlflow", tmp_path, train(1), ("note", 1, {"text": "no number"}), train(2, math.nan))
    first, *records = calls.of("batch")
    assert dict(first[2]) == {key: str(value) for key, value in FLAT.items()}
    assert [metrics for _, metrics, _ in records] == [
        [("train/loss", 0.5, 1), ("train/head_loss/1", 0.25, 1), ("train/head_loss/2", 0.75, 1)],
        [("train/head_loss/1", 0.25, 2), ("train/head_loss/2", 0.75, 2)],
    ]
    assert calls[-1] == ("end", ("run-0", "FINISHED"))


def test_mlflow_gets_many_parameters_in_pieces_it_takes(tmp_path, monkeypatch):
    calls = fake_mlflow(monkeypatch)
    track("mlflow", tmp_path, params={f"key{i}": i for i in range(250)})
    pieces = [params for _, _, params in calls.of("batch")]
    assert [len(piece) for piece in pieces] == [100, 100, 50]
    assert [pair for piece in pieces for pair in piece] == [(f"key{i}", str(i)) for i in range(250)]


def test_mlflow_names_have_only_characters_it_takes(tmp_path, monkeypatch):
    calls = fake_mlflow(monkeypatch)
    track("mlflow", tmp_path, ("evaluation", 1, {"pass@1": 0.5, "a.b-c d": 1.0}))
    assert calls.of("batch")[-1][1] == [
        ("evaluation/pass_1", 0.5, 1),
        ("evaluation/a.b-c d", 1.0, 1),
    ]


def test_a_resumed_run_goes_on_with_its_mlflow_run(tmp_path, monkeypatch):
    calls = fake_mlflow(monkeypatch)
    track("mlflow", tmp_path, train(1))
    track("mlflow", tmp_path, train(2), resume_step=1, params={"training": {"steps": 99}})
    assert calls.runs == ["run-0"]
    assert calls.of("update") == [("run-0", "RUNNING")]
    assert [run_id for run_id, metrics, _ in calls.of("batch") if metrics] == ["run-0", "run-0"]
    assert len([1 for _, _, params in calls.of("batch") if params]) == 1  # they cannot change
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"mlflow": "run-0"}


def test_a_store_that_does_not_know_the_run_gets_a_new_one(tmp_path, monkeypatch, warned):
    calls = fake_mlflow(monkeypatch)
    (tmp_path / "trackers.json").write_text('{"mlflow": "lost", "wandb": "kept"}')
    track("mlflow", tmp_path, train(2), resume_step=1)
    assert len(warned) == 1
    assert "lost" in warned[0]
    ids = json.loads((tmp_path / "trackers.json").read_text())
    assert ids == {"mlflow": calls.runs[0], "wandb": "kept"}


def test_another_failure_to_reopen_starts_no_second_run(tmp_path, monkeypatch):
    calls = fake_mlflow(monkeypatch)
    track("mlflow", tmp_path)
    calls.broken = FakeMlflowError("out of order")
    with pytest.raises(UserError, match="out of order"):
        make_trackers(["mlflow"], tmp_path, RECIPE, 1)
    assert calls.runs == ["run-0"]


# --- W&B -------------------------------------------------------------------------------------


def test_wandb_gets_records_and_the_flat_recipe(tmp_path, monkeypatch):
    calls = fake_wandb(monkeypatch)
    track("wandb", tmp_path / "run", train(3))
    (options,) = calls.of("init")
    assert options["config"] == FLAT
    assert (options["project"], options["name"]) == ("weighted-mtp", "run")
    assert options["dir"] == str((tmp_path / "run").resolve())
    assert "mode" not in options  # the user's environment decides
    assert ("*", {"step_metric": "step"}) in calls.of("define")
    assert calls.of("log") == [
        (
            "made-1",
            {"train/loss": 0.5, "train/head_loss/1": 0.25, "train/head_loss/2": 0.75, "step": 3},
        )
    ]
    assert calls[-1] == ("finish", "made-1")


def test_wandb_gathers_nothing_by_itself(tmp_path, monkeypatch):
    calls = fake_wandb(monkeypatch)
    track("wandb", tmp_path)
    assert calls.of("init")[0]["settings"] == {
        "console": "off",
        "disable_code": True,
        "disable_git": True,
        "save_code": False,
        "x_disable_machine_info": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
    }


def test_wandb_takes_the_project_of_the_environment(tmp_path, monkeypatch):
    calls = fake_wandb(monkeypatch)
    monkeypatch.setenv("WANDB_PROJECT", "heads")
    track("wandb", tmp_path)
    assert calls.of("init")[0]["project"] == "heads"


def test_a_resumed_run_goes_on_with_its_wandb_run(tmp_path, monkeypatch):
    calls = fake_wandb(monkeypatch)
    track("wandb", tmp_path, train(1))
    track("wandb", tmp_path, train(2), resume_step=1)
    assert [options["id"] for options in calls.of("init")] == [None, "made-1"]
    assert all(options["resume"] == "allow" for options in calls.of("init"))
    assert [run_id for run_id, _ in calls.of("log")] == ["made-1", "made-1"]


# --- failure ---------------------------------------------------------------------------------


class Recorder:
    """A tracker that keeps what it gets, waits at `gate`, and fails at the steps of `bad`."""

    def __init__(self, bad=(), gate=None, bad_end=False):
        self.bad, self.gate, self.bad_end = bad, gate, bad_end
        self.got, self.closed = [], False

    def log(self, kind, step, figures):
        if self.gate is not None:
            self.gate.wait(30)
        if step in self.bad:
            raise ConnectionError(f"https://me:s3cret@host is gone\nstep {step}")
        self.got.append((kind, step, figures))

    def close(self):
        self.closed = True
        if self.bad_end:
            raise OSError(28, "No space left on device")


def test_records_arrive_in_order_and_as_they_were(warned):
    inner = Recorder()
    tracker = BackgroundTracker("it", inner)
    figures = {"loss": 0.0}
    for step in range(200):
        figures["loss"] = float(step)
        tracker.log("train", step, figures)
    tracker.close()
    tracker.close()
    assert inner.got == [("train", step, {"loss": float(step)}) for step in range(200)]
    assert inner.closed
    assert warned == []
    tracker.log("train", 200, figures)
    assert len(inner.got) == 200


def test_the_first_failure_is_one_warning_and_the_end_of_that_tracker(warned):
    inner = Recorder(bad=(2, 3))
    tracker = BackgroundTracker("mlflow", inner)
    for step in range(1, 6):
        tracker.log("train", step, {})
    tracker.close()
    tracker._thread.join(10)
    assert [step for _, step, _ in inner.got] == [1]
    assert inner.closed  # files and connections are let go all the same
    assert len(warned) == 1
    assert "mlflow is switched off (ConnectionError: https://host is gone step 2)" in warned[0]
    assert "s3cret" not in warned[0]


def test_a_failure_at_the_end_is_one_warning(warned):
    tracker = BackgroundTracker("tensorboard", Recorder(bad_end=True))
    tracker.log("train", 1, {})
    tracker.close()
    assert len(warned) == 1
    assert "No space left on device" in warned[0]


def test_one_tracker_fails_and_the_others_go_on(tmp_path, monkeypatch, warned):
    board, store = fake_tensorboard(monkeypatch), fake_mlflow(monkeypatch)
    made = make_trackers(["mlflow", "tensorboard"], tmp_path, RECIPE, 0)
    store.broken = ConnectionError("gone")
    for step in (1, 2):
        for tracker in made:
            tracker.log(*train(step))
    for tracker in made:
        tracker.close()
    assert [step for tag, _, step in board.of("scalar") if tag == "train/loss"] == [1, 2]
    assert len(warned) == 1
    assert warned[0].startswith("mlflow is switched off")


def test_training_does_not_wait_for_a_slow_tracker(warned):
    gate = threading.Event()
    inner = Recorder(gate=gate)
    tracker = BackgroundTracker("slow", inner)
    started = time.perf_counter()
    for step in range(100):
        tracker.log("train", step, {})
    assert time.perf_counter() - started < 5
    assert inner.got == []
    gate.set()
    tracker.close()
    assert len(inner.got) == 100
    assert warned == []


def test_a_tracker_that_hangs_is_given_up(warned):
    gate = threading.Event()
    tracker = BackgroundTracker("stuck", Recorder(gate=gate), backlog=2, patience=0.05)
    started = time.perf_counter()
    for step in range(50):
        tracker.log("train", step, {})
    tracker.close()
    assert time.perf_counter() - started < 5
    assert warned == [
        "stuck is switched off (no answer for 0.05 s); metrics.jsonl has every figure"
    ]
    gate.set()


def test_a_tracker_that_hangs_at_the_end_is_given_up(warned):
    gate = threading.Event()
    tracker = BackgroundTracker("stuck", Recorder(gate=gate), patience=0.05)
    tracker.log("train", 1, {})
    tracker.close()
    assert len(warned) == 1
    assert "not finished after 0.05 s" in warned[0]
    gate.set()


# --- the real packages -----------------------------------------------------------------------


def test_real_tensorboard_shows_a_resumed_run_as_one_curve(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track("tensorboard", tmp_path, *(train(step, 1.0) for step in range(1, 7)))
    time.sleep(1.1)  # event files are ordered by the second they were made in
    track("tensorboard", tmp_path, *(train(step, 2.0) for step in range(5, 9)), resume_step=4)
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    points = [(point.step, point.value) for point in seen.Scalars("train/loss")]
    assert points == [(step, 1.0 if step < 5 else 2.0) for step in range(1, 9)]
    assert "train/head_loss/2" in seen.Tags()["scalars"]


def test_real_mlflow_keeps_a_resumed_run_in_one_local_file(tmp_path, warned):
    mlflow = pytest.importorskip("mlflow")
    run_dir = tmp_path / "a run"
    params = {**RECIPE, "many": {f"key{i}": i for i in range(150)}}
    track("mlflow", run_dir, train(1), ("evaluation", 1, {"pass@1": 0.5}), params=params)
    track("mlflow", run_dir, train(2, 0.25), resume_step=1, params={"pipeline": "other"})
    assert warned == []

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run_dir}/mlflow.db")
    experiment = client.get_experiment_by_name("weighted-mtp")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a run"
    assert run.info.artifact_uri.startswith((run_dir / "mlflow-artifacts").as_uri())
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.25)]
    assert run.data.metrics["evaluation/pass_1"] == 0.5
    assert len(run.data.params) == len(FLAT) + 150
    assert {key: run.data.params[key] for key in FLAT} == {k: str(v) for k, v in FLAT.items()}
    assert set(run.data.tags) == {"mlflow.runName"}
    assert SECRET.encode() not in (run_dir / "mlflow.db").read_bytes()


def test_real_wandb_off_line(tmp_path, monkeypatch, warned):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    track("wandb", tmp_path, train(1))
    run_id = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    time.sleep(1.1)  # a folder is named after the second it was made in
    track("wandb", tmp_path, train(2), resume_step=1)
    assert warned == []
    assert json.loads((tmp_path / "trackers.json").read_text())["wandb"] == run_id
    stored = list((tmp_path / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(stored) == 2
    content = b"".join(path.read_bytes() for path in stored)
    assert b"train/head_loss/2" in content
    assert b"training.learning_rate" in content
    for private in (SECRET, sys.executable, "requirements.txt", "wandb-metadata.json"):
        assert private.encode() not in content, private
