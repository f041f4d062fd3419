"""What an installed package must do: hold its files, train the demo's recipe, write, export."""

import tempfile
from importlib import resources
from pathlib import Path

import weighted_mtp as wm
from weighted_mtp.cli.main import main

package = resources.files("weighted_mtp")
for name in (
    "py.typed",
    "recipes/verifiable.yaml",
    "recipes/presets/micro.yaml",
    "micro_tasks/vocabulary/tokenizer.json",
    "models/meta_mtp/layouts/remote/modeling_mtp.py",
):
    assert package.joinpath(name).is_file(), name

SMALL = [
    *("training.steps=2", "training.save_every=2", "training.validate_every=2"),
    *("critic_stage.steps=2", "training.batch_size=4", "training.micro_batch_size=4"),
    *("model.architecture.dim=32", "model.architecture.n_layers=5", "model.architecture.n_heads=2"),
    *("data.micro.n_problems=8", "data.micro.n_validation=4", "data.max_length=160"),
    *("runtime.device=cpu", "training.optimizer=adamw"),
]
with tempfile.TemporaryDirectory() as folder:
    run = Path(folder, "run")
    train = ["train", "--recipe", "verifiable", "--preset", "micro", "--output-dir", str(run)]
    assert main([*train, *(word for change in SMALL for word in ("--set", change))]) == 0
    assert main(["generate", str(run), "--prompt", "x", "--max-new-tokens", "4"]) == 0
    assert main(["convert", str(run), f"{folder}/exported", "--to", "hf"]) == 0
    assert main(["verify", str(run), f"{folder}/exported"]) == 0
print(f"weighted-mtp {wm.__version__} trains, writes and exports")  # noqa: T201
