"""Several processes have the results of one, also where one of them fails."""

import contextlib
import copy
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator, PartialState
from support import evaluation as tiny
from support.evaluation import in_threads
from torch.distributed.fsdp import FSDPModule

from modeling_gpt2scratch.common.errors import in_words
from modeling_gpt2scratch.evaluation import measuring
from modeling_gpt2scratch.evaluation.configuration import CompareConfig
from modeling_gpt2scratch.evaluation.in_training import score_benchmarks
from modeling_gpt2scratch.evaluation.results.cache import ResultCache
from modeling_gpt2scratch.evaluation.results.measurements import ModelMeasurements
from modeling_gpt2scratch.evaluation.scoring import greedy as greedy_words
from modeling_gpt2scratch.evaluation.scoring import processes as process_group
from modeling_gpt2scratch.evaluation.scoring import shared_scorer
from modeling_gpt2scratch.evaluation.scoring.greedy import greedy_continuations
from modeling_gpt2scratch.evaluation.scoring.processes import ProcessGroup
from modeling_gpt2scratch.evaluation.scoring.scorer import CausalScorer
from modeling_gpt2scratch.evaluation.scoring.shared_scorer import SharedScorer
from modeling_gpt2scratch.evaluation.tasks.lambada import TASKS

TEXTS = [
    f"{i} times the cat sat on {'a ' * (i % 5)}the {('mat', 'dog', 'cat')[i % 3]}"
    for i in range(40)
]
ENDINGS = [" mat", " the dog", " end of the cat", " a"]
CONTEXT = "a naïve café: the cat sat on the mat and the dog sat on the cat"  # enough to share


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny.tiny_gpt2(tokenizer, n_positions=64)


@pytest.fixture
def shared(model, tokenizer):
    """Makes the scorer of a process."""

    def scorer_of(processes, batch_tokens=60):
        return SharedScorer(model, tokenizer, processes.accelerator, batch_tokens=batch_tokens)

    return scorer_of


def test_a_process_of_several_runs_the_head_where_tokens_are_scored_as_one_alone_does(
    model, tokenizer, caplog
):
    place = SimpleNamespace(is_main_process=True, num_processes=2, process_index=0)
    scorer = SharedScorer(model, tokenizer, place, batch_tokens=60)
    assert scorer._head is model.get_output_embeddings() and not caplog.records


def outcome(work):
    """The exception that `work` raises, None if it raises none."""
    try:
        work()
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("n_processes", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_tokens", [1, 60, 400])
def test_what_several_processes_write_is_what_one_writes(
    monkeypatch, model, tokenizer, shared, n_processes, batch_tokens
):
    contexts = tokenizer(TEXTS)["input_ids"]
    options = {"n_tokens": 3, "first_excluded": [5], "description": "test"}
    alone = CausalScorer(model, tokenizer, batch_tokens=batch_tokens)
    expected = greedy_continuations(alone, contexts, **options)
    write, rows = greedy_words._write_batch, [[] for _ in range(n_processes)]

    def count(scorer, context_ids, *rest):
        rows[scorer._accelerator.process_index].append(len(context_ids))
        return write(scorer, context_ids, *rest)

    monkeypatch.setattr(greedy_words, "_write_batch", count)
    found = in_threads(
        monkeypatch,
        n_processes,
        lambda own: greedy_continuations(shared(own, batch_tokens), contexts, **options),
    )
    assert found == [expected] * n_processes
    assert sum(map(sum, rows)) == len(contexts)  # none is written twice
    n_batches = [len(own) for own in rows]
    assert max(n_batches) - min(n_batches) <= 1


@pytest.mark.parametrize("n_processes", [1, 3])
def test_log_likelihoods_of_several_processes_are_exactly_those_of_one(
    monkeypatch, model, tokenizer, shared, n_processes
):
    contexts = [f"{CONTEXT} {text}" for text in TEXTS[:9]]
    choices = [ENDINGS[: 1 + i % 4] for i in range(9)]
    expected = CausalScorer(model, tokenizer, batch_tokens=60).score_choices(contexts, choices)
    monkeypatch.setattr(shared_scorer, "BATCHES_PER_EXCHANGE", 2)  # several exchanges
    for found in in_threads(
        monkeypatch, n_processes, lambda own: shared(own).score_choices(contexts, choices)
    ):
        np.testing.assert_array_equal(found.log_probs, expected.log_probs)
        np.testing.assert_array_equal(found.is_greedy, expected.is_greedy)


def test_processes_that_find_that_a_model_takes_trees_or_not_make_the_same_batches(
    monkeypatch, model, tokenizer, shared
):
    pairs = [CONTEXT] * 3, [ENDINGS] * 3
    monkeypatch.setattr(CausalScorer, "_can_join", lambda self: False)
    expected = CausalScorer(model, tokenizer, batch_tokens=60).score_choices(*pairs).log_probs

    def can_join(scorer):
        return scorer._accelerator.process_index != 1

    monkeypatch.setattr(CausalScorer, "_can_join", can_join)
    for found in in_threads(monkeypatch, 3, lambda own: shared(own).score_choices(*pairs)):
        np.testing.assert_array_equal(found.log_probs, expected)


@pytest.fixture
def measure(monkeypatch, model, tokenizer, tmp_path):
    """Calls `evaluate_model` on some processes, and returns the measurements on each."""
    config = CompareConfig(models=["m"], tasks=list(TASKS), batch_tokens="60", device="cpu")

    def load_scorer(name, *, processes, **_):
        if processes.accelerator is None:
            return CausalScorer(model, tokenizer, batch_tokens=60)
        return SharedScorer(model, tokenizer, processes.accelerator, batch_tokens=60)

    monkeypatch.setattr(measuring, "load_scorer", load_scorer)

    def work(processes, tasks):
        measured = ModelMeasurements(str(tmp_path))
        measuring.evaluate_model(measured, tasks, config, ResultCache(None), processes)
        return measured.tasks

    def measure(n_processes, names=("lambada", "lambada:generate", "lambada:last-token")):
        tasks = {name: TASKS[name](TEXTS) for name in names}
        if n_processes is None:
            return work(measuring.ProcessGroup("cpu"), tasks)
        return in_threads(monkeypatch, n_processes, lambda own: work(own, tasks))

    return measure


def fail_on(monkeypatch, name, rank, error):
    """The method or function `name` raises `error` on one process, and where there is only one."""
    place = greedy_words if name == "_write_batch" else CausalScorer
    work = getattr(place, name)

    def fail(scorer, *arguments, **options):
        accelerator = getattr(scorer, "_accelerator", None)
        if accelerator is None or accelerator.process_index == rank:
            raise error
        return work(scorer, *arguments, **options)

    monkeypatch.setattr(place, name, fail)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("3 of 17 log-probs are not finite"),
        torch.OutOfMemoryError("CUDA out of memory.\nTried"),
        KeyError("a"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    ("place", "failed"),
    [
        ("_score_whole_batch", {"lambada"}),
        ("_write_batch", {"lambada:generate", "lambada:last-token"}),
    ],
)
def test_a_problem_of_one_process_ends_the_row_on_all_with_the_message_of_one(
    monkeypatch, measure, error, place, failed
):
    fail_on(monkeypatch, place, 1, error)
    expected = {name: cell.error for name, cell in measure(None).items()}
    assert {name for name, line in expected.items() if line} == failed
    assert in_words(error) in expected.values()
    for found in measure(3):
        assert {name: cell.error for name, cell in found.items()} == expected


def test_a_problem_outside_the_model_ends_the_row_on_all(monkeypatch, measure):
    fail_on(monkeypatch, "_score_rows", 1, MemoryError("no room"))
    for found in measure(2, names=["lambada", "lambada:generate"]):
        assert found["lambada"].error == "MemoryError: no room"
        assert found["lambada:generate"].result is not None
    # What all find alike is said as by one.
    monkeypatch.setattr(CausalScorer, "_score_rows", lambda *_: 1 / 0)
    for found in measure(2, names=["lambada"]):
        assert found["lambada"].error == "ZeroDivisionError: division by zero"


def test_a_process_that_has_lost_the_others_does_not_go_on_alone(monkeypatch, measure):
    def lose(*_):
        raise RuntimeError("Connection closed by peer")

    for module in (shared_scorer, process_group):
        monkeypatch.setattr(module, "exchange", lose)
    with pytest.raises(RuntimeError, match="closed by peer"):
        measure(1)


def test_of_several_problems_the_one_counts_that_one_process_would_meet(monkeypatch, shared):
    def compute(batch):
        if batch >= 4:
            raise ValueError(f"batch {batch}")
        return [batch]

    def work(processes):
        rows = shared(processes).compute_rows(range(9), compute, n_rows=9, description="test")
        return outcome(lambda: list(rows))

    for n_processes in (2, 3):  # of two the second has 5 first, of three the second has 4
        for error in in_threads(monkeypatch, n_processes, work):
            assert isinstance(error, process_group.SharedProblemError)
            assert str(error) == "batch 4"


def test_only_the_main_process_draws_a_bar_and_only_where_one_is_wanted(
    monkeypatch, model, tokenizer
):
    drawn = []

    def draw(**options):
        drawn.append((int(threading.current_thread().name), options["is_shown"]))
        return contextlib.nullcontext()

    def work(processes):
        threading.current_thread().name = str(processes.accelerator.process_index)
        for in_training in (False, True):
            scorer = SharedScorer(
                *(model, tokenizer, processes.accelerator),
                batch_tokens=60,
                in_training=in_training,
            )
            list(scorer.compute_rows([], list, n_rows=0, description="test"))

    monkeypatch.setattr(shared_scorer, "progress_bar", draw)
    in_threads(monkeypatch, 2, work)
    assert sorted(drawn) == [(0, False), (0, True), (1, False), (1, False)]


def test_only_the_main_process_of_a_run_says_what_has_no_score(
    monkeypatch, model, tokenizer, capsys
):
    accelerator = Accelerator(cpu=True)
    broken = copy.deepcopy(model)
    torch.nn.init.constant_(broken.transformer.ln_f.bias, torch.nan)
    tasks = {"lambada": TASKS["lambada"](TEXTS)}
    for is_main in (True, False):  # of the first and of the second machine
        monkeypatch.setattr(PartialState, "is_main_process", property(lambda _, v=is_main: v))
        assert score_benchmarks(tasks, broken, tokenizer, accelerator, batch_tokens=60) == {}
        printed = capsys.readouterr().out
        assert printed.count("no score of lambada: ") == is_main


def test_a_run_goes_on_where_a_benchmark_lacks_the_memory(monkeypatch, model, tokenizer, capsys):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(CausalScorer, "_score_whole_batch", fail)
    tasks = {"lambada": TASKS["lambada"](TEXTS)}
    accelerator = Accelerator(cpu=True)
    assert score_benchmarks(tasks, model, tokenizer, accelerator, batch_tokens=60) == {}
    assert "no score of lambada: OutOfMemoryError: CUDA out" in capsys.readouterr().out


def test_a_sharded_model_writes_nothing_and_refuses_unknown_ids_before_any_pass(
    monkeypatch, model, tokenizer, shared
):
    monkeypatch.setattr(CausalScorer, "_score_whole_batch", lambda *_: pytest.fail("a pass"))

    def work(processes):
        scorer = shared(processes)
        scorer._is_sharded = True
        rows = [np.array([1, 2]), np.array([1, len(tokenizer)])]
        return str(outcome(lambda: list(scorer.score_windows(rows))))

    for message in in_threads(monkeypatch, 2, work):
        assert message.startswith(f"expected token ids below the model's {len(tokenizer)} embed")
    sharded = CausalScorer(copy.deepcopy(model), tokenizer, batch_tokens=60)
    kind = type(sharded.model)
    sharded.model.__class__ = type("Sharded", (FSDPModule, kind), {})
    with pytest.raises(ValueError, match="expected a whole model to write with, found one sharded"):
        greedy_continuations(sharded, [[1]], n_tokens=1, description="test")


def test_passes_of_a_sharded_model_are_as_many_on_every_process_that_finds_a_problem(
    monkeypatch, shared
):
    def work(processes):
        scorer, passes = shared(processes), []
        scorer._is_sharded = True

        def compute(batch):
            passes.append(batch)
            if batch == 1:
                raise ValueError("batch 1")
            return [batch]

        rows = scorer.compute_rows(range(7), compute, n_rows=7, description="test")
        return len(passes), str(outcome(lambda: list(rows))), len(passes)

    assert in_threads(monkeypatch, 2, work) == [(0, "batch 1", 4)] * 2


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(process_group, "Accelerator", lambda cpu: Accelerator(cpu=True))
    for variable in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(
        SystemExit, match="expected --device auto or cpu with 2 processes, .*cuda:0"
    ):
        ProcessGroup("cuda:0")
    with pytest.raises(SystemExit, match="expected 2 processes in one group, as launched, found 1"):
        ProcessGroup("auto")
