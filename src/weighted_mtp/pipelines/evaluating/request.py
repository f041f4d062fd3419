"""What to evaluate: a checkpoint or given completions, on one of four data sets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from weighted_mtp.core.errors import UserError
from weighted_mtp.core.model_folder import results_folder
from weighted_mtp.decoding import Sampling, Speculation
from weighted_mtp.evaluation.benchmarks import BENCHMARKS, MICRO, MICRO_SPLITS
from weighted_mtp.evaluation.result_files import JOURNAL
from weighted_mtp.evaluation.scores import check_ks
from weighted_mtp.pipelines.evaluating.writer import rows_together

CANONICAL, MUTANTS = "canonical", "mutants"
_POSITIVE = (
    *("n_problems", "n_samples", "max_difficulty", "max_new_tokens", "batch_size"),
    *("timeout", "workers"),
)
_NOT_FOR_MICRO = ("completions", "problems", "source", "prompt", "partial")
_ONLY_FOR_MICRO = ("max_difficulty",)


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate, and how.

    Attributes:
        dataset: `micro`, or one of `benchmarks.BENCHMARKS`.
        path: a run, a checkpoint or a model directory.
        completions: instead of a model, a file (task_id, and completion or solution), or
            `canonical` or `mutants`: the reference solutions, unchanged or with one mistake each.
        output: directory of the results; for micro tasks the file of all programs and verdicts,
            beside which the directory is made. None chooses one beside the checkpoint or the
            completions.
        n_problems: number of problems, the first ones; None takes 200 micro tasks, or a whole data
            set.
        n_samples: programs for each problem.
        ks: k of pass@k; None takes those of 1, 10 and 100 that there are enough samples for.
        split: of micro tasks `test`; `compositions`: pairs of known operations that no training
            row combines; or `train`, to collect attempts to learn from. Of a source see
            `load_benchmark`.
        problems, source: see `load_benchmark`.
        max_difficulty: of micro tasks; None takes the families the run was trained on.
        seed: of the micro tasks drawn. No split but `train` shares a problem with training,
            whatever the seed.
        prompt, template: see `choose_prompting`.
        max_new_tokens: of each program; None is 256 for micro tasks, else 512.
        stops: strings that end a program, besides those of the prompt's style.
        speculation: draft with the model's heads; None decodes one token at a time.
        batch_size: prompts at a time; None is 64 for micro tasks, else 16, and 1 for a tree of
            drafts.
        timeout: wall-clock seconds of one run of a program.
        workers: programs run at a time; None is one for each core.
        logprobs: keep the summed log-probability of every text that the model writes.
        overwrite: start over; otherwise finished attempts in the output directory are kept.
        partial: a file of completions may lack problems.
    """

    dataset: str = MICRO
    path: Path | None = None
    completions: str | None = None
    output: Path | None = None
    n_problems: int | None = None
    n_samples: int = 1
    ks: tuple[int, ...] | None = None
    split: str | None = None
    problems: Path | None = None
    source: str | None = None
    max_difficulty: int | None = None
    seed: int = 0
    prompt: str | None = None
    template: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int | None = None
    stops: tuple[str, ...] = ()
    speculation: Speculation | None = None
    batch_size: int | None = None
    device: str = "auto"
    dtype: str | None = None
    timeout: float = 5.0
    workers: int | None = None
    logprobs: bool = False
    overwrite: bool = False
    partial: bool = False

    @property
    def micro(self) -> bool:
        """Whether the problems are micro tasks."""
        return self.dataset == MICRO

    @property
    def directory(self) -> Path:
        """Where the journal and the other results are kept."""
        output = self.output or self._default_output()
        return output.with_suffix(".evaluation") if self.micro else output

    @property
    def programs_file(self) -> Path:
        """Where every program and its verdict is found."""
        output = self.output or self._default_output()
        return output if self.micro else output / JOURNAL

    def resolved(self) -> EvaluationRequest:
        """Check everything that needs no file, and fill in the defaults of the data set.

        Raises:
            UserError: a value is out of range, or an option has no effect on this data set.
        """
        if self.dataset not in (MICRO, *BENCHMARKS):
            known = ", ".join((MICRO, *BENCHMARKS))
            raise UserError(f"unknown data set {self.dataset!r}: choose one of {known}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                bound = "above 0" if name in ("timeout", "workers") else "at least 1"
                raise UserError(f"{_option(name)} must be {bound}")
        for name in _NOT_FOR_MICRO if self.micro else _ONLY_FOR_MICRO:
            if getattr(self, name) not in (None, False):
                raise UserError(f"{_option(name)} has no meaning for --dataset {self.dataset}")
        if self.micro and self.path is None:
            raise UserError("give a checkpoint: a run, a checkpoint or a model directory")
        if (self.path is None) == (self.completions is None):
            raise UserError("give a checkpoint, or --completions FILE: one of the two")
        if self.micro and self.split not in (None, *MICRO_SPLITS):
            raise UserError(f"--split {self.split!r}: micro tasks have {', '.join(MICRO_SPLITS)}")
        if self.path is not None:
            check_ks(self.ks or (), self.n_samples)
        problems, tokens, batch = (200, 256, 64) if self.micro else (None, 512, 16)
        return replace(
            self,
            output=self.output or self._default_output(),
            n_problems=self.n_problems or problems,
            split=self.split or (MICRO_SPLITS[0] if self.micro else None),
            max_new_tokens=self.max_new_tokens or tokens,
            batch_size=rows_together(self.batch_size or None, batch, self.speculation),
        )

    def _default_output(self) -> Path:
        if self.path is not None:
            folder = results_folder(self.path) / "evaluation"
            name = f"{MICRO}-{self.split or MICRO_SPLITS[0]}.jsonl" if self.micro else self.dataset
            return folder / name
        given = str(self.completions)
        if given in (CANONICAL, MUTANTS):
            raise UserError(f"--completions {given}: name a directory for the results by --output")
        return Path(given).with_suffix(".evaluation")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
