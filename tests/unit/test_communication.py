"""What a step sends, by formulas written out by hand for a tiny model; nothing is measured."""

from dataclasses import replace

import pytest
from tests.helpers import tiny_args

from weighted_mtp.cli.main import main
from weighted_mtp.core.config.recipe import load_recipe
from weighted_mtp.pipelines.planning.communication import (
    Collective,
    Hardware,
    Step,
    collectives,
    flops_per_token,
    step_on_paper,
)
from weighted_mtp.pipelines.planning.estimate import count, setting_of
from weighted_mtp.pipelines.planning.memory_inputs import Counts, Setting
from weighted_mtp.pipelines.training.objectives import make_objective

GPUS, NODE, LENGTH = 16, 8, 12
ARGS = tiny_args(ffn_hidden_dim=88)  # dim 32, 5 blocks of which 3 are heads, 4 heads, V 37
MATRICES = 4 * 32 * 32 + 3 * 32 * 88
BLOCK = MATRICES + 2 * 32
ROOT = 2 * 37 * 32 + 32
SIMPLE = Hardware(
    flops=1e6, utilisation=0.5, nvlink=1e6, network=1e5, start=1e-3, nvlink_hop=1e-4, network_hop=0
)


def inputs(mode: str, *changes: str) -> tuple[Counts, Setting]:
    recipe = load_recipe(
        "baseline",
        None,
        [
            *("model.path=unread", "data.train=unread", f"data.max_length={LENGTH + 1}"),
            *(f"runtime.parallel={mode}", "training.micro_batch_size=1"),
            *(f"training.batch_size={GPUS}", *changes),
        ],
    )
    objective = make_objective(recipe.objective, ARGS.n_future_tokens)
    counts = count(recipe, ARGS, objective)
    return counts, setting_of(recipe, ARGS, objective, GPUS, NODE)


def sent(mode: str, *changes: str, micro_batches: int = 1) -> dict[tuple[str, str], float]:
    """(kind, phase) → bytes that a GPU receives in a step."""
    counts, setting = inputs(mode, *changes)
    found = collectives(counts, setting, GPUS, NODE, micro_batches)
    assert len({(c.kind, c.phase) for c in found}) == len(found)
    return {(c.kind, c.phase): c.received for c in found}


def test_what_ddp_sends():
    whole = 4 * (5 * BLOCK + ROOT)
    assert sent("ddp") == {("all-reduce", "backward"): pytest.approx(2 * 15 / 16 * whole)}
    assert sent("ddp", micro_batches=3) == sent("ddp")


def test_what_fsdp_sends():
    part = 15 / 16
    expected = {
        ("all-gather", "start"): part * 4 * ROOT,
        ("all-gather", "forward"): part * 4 * 5 * BLOCK,
        ("all-gather", "backward"): part * 4 * 5 * BLOCK,
        ("reduce-scatter", "backward"): part * 4 * 5 * BLOCK,
        ("reduce-scatter", "end"): part * 4 * ROOT,
    }
    assert sent("fsdp") == pytest.approx(expected)
    half = sent("fsdp", "runtime.fsdp.param_dtype=bfloat16", "runtime.fsdp.reduce_dtype=bfloat16")
    ends = ("start", "end")  # the root is float32 always
    halves = {k: v if k[1] in ends else v / 2 for k, v in expected.items()}
    assert half == pytest.approx(halves)
    kept = sent("fsdp", "runtime.fsdp.reshard_after_forward=false")
    assert expected.keys() - kept.keys() == {("all-gather", "backward")}


def test_micro_batches_gather_again_and_reduce_when_asked():
    once, thrice = sent("fsdp"), sent("fsdp", micro_batches=3)
    again = {key: thrice[key] / once[key] for key in once}
    assert again == {
        ("all-gather", "start"): 1,
        ("all-gather", "forward"): 3,
        ("all-gather", "backward"): 3,
        ("reduce-scatter", "backward"): 1,
        ("reduce-scatter", "end"): 1,
    }
    each = sent("fsdp", "runtime.fsdp.reduce_gradients=micro_batch", micro_batches=3)
    assert each[("reduce-scatter", "backward")] == 3 * once[("reduce-scatter", "backward")]


def test_hsdp_gathers_in_the_node_and_sums_a_part_across():
    counts, setting = inputs("hsdp")
    found = collectives(counts, setting, GPUS, NODE, 1)
    inside = [c for c in found if c.kind != "all-reduce"]
    across = [c for c in found if c.kind == "all-reduce"]
    assert all((c.ranks, c.nodes, c.into_node(NODE)) == (8, 1, 0) for c in inside)
    assert all((c.ranks, c.nodes, c.per_node) == (2, 2, 1) for c in across)
    parts = 4 * (5 * BLOCK + ROOT) / 8
    assert sum(c.received for c in across) == pytest.approx(2 * 1 / 2 * parts)
    assert sum(c.into_node(NODE) for c in across) == pytest.approx(8 * parts)
    sixteen = collectives(*inputs("hsdp", "runtime.fsdp.shard_size=16"), GPUS, NODE, 1)
    assert {(c.kind, c.ranks, c.nodes) for c in sixteen} <= {
        ("all-gather", 16, 2),
        ("reduce-scatter", 16, 2),
    }


def test_frozen_blocks_are_gathered_and_not_reduced():
    whole, heads = sent("fsdp"), sent("fsdp", "training.adapt=heads")
    assert heads[("all-gather", "forward")] <= whole[("all-gather", "forward")]
    assert heads[("reduce-scatter", "backward")] == pytest.approx(15 / 16 * 4 * 2 * BLOCK)
    assert ("reduce-scatter", "end") not in heads


def test_time_of_a_collective():
    one_node = Collective("all-gather", "forward", 8e3, 2, ranks=8, per_node=8)
    assert one_node.seconds(SIMPLE) == pytest.approx(2 * (1e-3 + 7e-4) + 2 * 7e3 / 1e6)
    two = Collective("all-gather", "forward", 16e3, 1, ranks=16, per_node=8)
    assert two.seconds(SIMPLE) == pytest.approx(1e-3 + 14e-4 + 15e3 / 8e5)  # 8 network cards
    rail = Collective("all-reduce", "backward", 1e3, 1, ranks=2, per_node=1)
    assert rail.seconds(SIMPLE) == pytest.approx(1e-3 + 1e3 / 1e5)
    assert Collective("all-gather", "start", 1e3, 1, ranks=1, per_node=1).seconds(SIMPLE) == 0


def test_flops_of_a_token():
    counts, setting = inputs("fsdp")
    forward, backward = flops_per_token(counts, setting)
    block, vocabulary = 2 * MATRICES + 4 * LENGTH * 32, 2 * 37 * 32
    assert forward == 5 * block + 3 * vocabulary
    assert backward == 2 * forward
    counts, setting = inputs("fsdp", "training.adapt=heads")
    frozen = flops_per_token(counts, setting)
    assert frozen[0] == forward
    assert frozen[1] < backward / 2


def test_compute_hides_all_but_the_root_above_so_many_tokens():
    counts, setting = inputs("fsdp")
    fast = replace(SIMPLE, flops=1e9)

    def step(rows: int) -> Step:
        return step_on_paper(counts, replace(setting, rows=rows), GPUS, NODE, 1, fast)

    rows = step(1).hides_above / LENGTH
    assert rows > 10
    assert step(int(rows)).exposed > step(int(rows)).bare > 0
    assert step(int(rows) + 1).exposed == pytest.approx(step(1).bare)


def test_the_plan_shows_it_with_its_assumptions(capsys):
    words = ["plan", "--recipe", "baseline", "--model", "7b", "--gpus", "16", "--network", "25"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "On paper" in text
    assert "network 25 GB/s" in text
    assert main(words[:-4]) == 0
    assert "On paper" not in capsys.readouterr().out  # one GPU sends nothing
    assert main([*words[:-1], "0"]) == 2
    assert "--network 0: give a number above 0, e.g. 50" in capsys.readouterr().err
