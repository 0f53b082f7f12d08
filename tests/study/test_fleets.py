"""Which runs are trained together."""

from itertools import product

from unipelt.study.compare import group_by_seed
from unipelt.study.plan import FLEET_FACTOR, StudyConfig, fleet_name, group_into_fleets
from unipelt.train.records import RunKey


def keys(tasks=("rte", "cola"), ks=(100, "all"), methods=("lora", "full"), seeds=3, rates=(1e-3, 1e-4)) -> list[RunKey]:
    return [
        RunKey(task=task, k=k, method=method, seed=seed, lr=lr)
        for task, k, method, seed, lr in product(tasks, ks, methods, range(seeds), rates)
    ]


def test_a_fleet_is_of_one_method_and_size_and_on_a_cpu_of_one_task():
    plan = keys(methods=("lora", "adapter", "full"))
    for mixed in (False, True):
        fleets = group_into_fleets(plan, 4, mixed)
        assert sorted(key.id for fleet in fleets.values() for key in fleet) == sorted(key.id for key in plan)
        tuned = [fleet for fleet in fleets.values() if not fleet[0].full]
        assert all(len({(key.k, key.method) for key in fleet}) == 1 for fleet in fleets.values())
        assert all(len({key.task for key in fleet}) == 1 + mixed for fleet in tuned)
        assert all(len(fleet) == 1 for fleet in fleets.values() if fleet[0].full), "full fine-tuning trains alone"
    kinds = group_into_fleets(keys(methods=["lora"]), 64, True, kind=lambda key: key.task)
    assert all(len({key.task for key in fleet}) == 1 for fleet in kinds.values()), "unlike tasks are kept apart"
    (first, *_) = group_into_fleets(keys(methods=["lora"]), 64, True).values()
    assert [key.task for key in first] == ["cola"] * 6 + ["rte"] * 6, "short texts first"


def test_a_fleet_has_a_queue_behind_the_runs_that_train_at_once():
    plan = keys(["rte"], [100], ["lora"], seeds=9, rates=[1e-3])
    assert [len(fleet) for fleet in group_into_fleets(plan, 2, False).values()] == [2 * FLEET_FACTOR, 1]
    two = [fleet_name([plan[0], plan[other]]) for other in (1, 2, 1)]
    assert two[0] == two[2] != two[1], "a name is that of all its runs"


def test_a_comparison_trains_a_seed_after_another_and_the_folds_of_one_together():
    plan = keys(["a.csv"], ["all"], seeds=4)
    fleets = [{(key.method, key.seed, key.lr) for key in fleet} for fleet in group_by_seed(plan).values()]
    assert {("lora", 2, 1e-3), ("lora", 2, 1e-4)} in fleets and {("full", 2, 1e-4)} in fleets and len(fleets) == 4 + 8
    folded = group_by_seed(plan, folds=2).values()
    assert [{key.seed for key in fleet} for fleet in folded if fleet[0].method == "lora"] == [{0, 1}, {2, 3}]
    baselines = [RunKey(task="a.csv", k="all", method="tfidf", seed=seed, lr=None) for seed in range(4)]
    assert [*group_by_seed(baselines, folds=2).values()] == [baselines], "which read the same texts"


def test_a_run_has_the_options_of_its_study_and_the_rate_of_its_key():
    study = StudyConfig(folds=3, recipe={"epochs": 2, "lr": 1.0}, columns={"label_column": "stars", "stratify": True})
    config = study.config(keys(["rte"])[1])
    assert (config.recipe, config.folds, config.label_column, config.stratify) == (
        {"epochs": 2, "lr": 1e-4},
        3,
        None,
        True,
    )
    assert study.config(keys(["a.csv"])[0]).label_column == "stars", "GLUE has columns of its own"
    assert [StudyConfig().most_at_once(device) for device in ("cpu", "cuda", "xpu")] == [4, 64, 64]
    assert StudyConfig(runs_at_once=7).most_at_once("cpu") == 7
