"""`runtime.compute_dtype: auto` is bfloat16 where the device multiplies it in hardware."""

import re
from pathlib import Path

import pytest
import torch
from tests.helpers import tiny_args, tiny_model

import weighted_mtp
from weighted_mtp.core import device
from weighted_mtp.core.config.recipe import Recipe, load_recipe, load_recipe_file
from weighted_mtp.decoding import products
from weighted_mtp.decoding.fast_model import FastModel
from weighted_mtp.pipelines.planning.plan import PlanRequest, plan
from weighted_mtp.pipelines.resolve import settle
from weighted_mtp.pipelines.train import run_request

TINY = ("training.steps=1", "model.architecture.dim=16", "model.architecture.n_layers=4")


@pytest.fixture(params=[True, False], ids=["hardware", "none"])
def fast(request, monkeypatch) -> bool:
    """Whether this machine multiplies bfloat16."""
    for module in (device, products):
        monkeypatch.setattr(module, "fast_bfloat16", lambda _: request.param)
    return request.param


def recipe(*changes: str) -> Recipe:
    return load_recipe("baseline", "micro", [*TINY, "runtime.device=cpu", *changes])


def test_the_machine_decides(fast):
    assert settle(recipe()).runtime.compute_dtype == ("bfloat16" if fast else "float32")


def test_a_format_that_is_named_stays(fast):
    for name in ("bfloat16", "float32"):
        changed = settle(recipe(f"runtime.compute_dtype={name}"))
        assert changed.runtime.compute_dtype == name


def test_gathered_bfloat16_means_bfloat16(fast):
    assert settle(recipe("runtime.fsdp.param_dtype=bfloat16")).runtime.compute_dtype == "bfloat16"


def test_a_plan_is_of_gpus(fast):
    found = plan(PlanRequest("baseline", "micro", gpus=8))
    assert found.recipe.runtime.compute_dtype == "bfloat16"


def test_every_shipped_recipe_lets_the_machine_decide():
    for file in (Path(weighted_mtp.__file__).parent / "recipes").rglob("*.yaml"):
        formats = re.findall(r"^ *compute_dtype: (\w+)", file.read_text(encoding="utf-8"), re.M)
        assert set(formats) <= {"auto"}, file


def test_a_run_keeps_what_was_chosen(tmp_path, fast):
    """And goes on in it on another machine; only a change that is asked for is one."""
    chosen = run_request(recipe(), output_dir=tmp_path).recipe
    (tmp_path / "config.yaml").write_text(chosen.to_yaml(), encoding="utf-8")
    kept = load_recipe_file(tmp_path / "config.yaml").runtime.compute_dtype
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "fast_bfloat16", lambda _: not fast)
        resumed = run_request(None, output_dir=tmp_path, resume=True)
    assert kept == resumed.recipe.runtime.compute_dtype == ("bfloat16" if fast else "float32")


def test_decoding_reads_in_float32_where_bfloat16_is_slow(fast, monkeypatch):
    monkeypatch.setattr(products, "_SMALL", 0)
    model = tiny_model(tiny_args(), 0, dtype=torch.bfloat16)
    assert FastModel(model, steps=100).dtype == (torch.bfloat16 if fast else torch.float32)
    assert FastModel(model, steps=1).dtype == torch.bfloat16  # not worth a copy
    assert model.output.weight.dtype == torch.bfloat16


def test_a_cpu_without_onednns_bfloat16_is_told(monkeypatch):
    def missing() -> bool:
        raise RuntimeError("no such operator")

    cpu = torch.device("cpu")
    assert isinstance(device.fast_bfloat16(cpu), bool)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", missing)
    for capability, wanted in (("AVX2", False), ("AVX512", True)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda kind=capability: kind)
        assert device.fast_bfloat16(cpu) is wanted
