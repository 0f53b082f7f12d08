"""How long the linear model of the tfidf baseline takes, as it is ÷ fitted to the features themselves.

    python benchmarks/linear.py [--task docstrings] [--sizes 64 400 1000 2000] [--rounds 3] [--data-dir GLUE]

CPU seconds of one thread; the two take turns, and the ratio is the median over rounds. The largest difference between their
weights is given beside it, as a share of the largest weight.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="docstrings")
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 400, 1000, 2000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data-dir")
    given = parser.parse_args()

    import numpy as np

    from unipelt.data.folds import inner_folds
    from unipelt.tasks import linear
    from unipelt.train.records import RunConfig
    from unipelt.train.setup import DatasetCache
    from unipelt.train.text_features import WordCounts

    kinds = {"fitted to the features": lambda x: (x, lambda weight: weight), "as it is": linear.coordinates}
    cache = DatasetCache()
    for size in given.sizes:
        config = RunConfig(task=given.task, method="tfidf", k=size, data_dir=given.data_dir, validation_rows=100)
        train, task = cache.splits(config).train, cache.task(config)
        features = WordCounts.fit(train, None)(train)
        folds = inner_folds(train, train.targets if task.classes else None)
        ratios, seconds, weights = [], {}, {}
        for number in range(given.rounds + 1):  # the first imports and warms up
            for name, kind in kinds.items():
                linear.coordinates = kind
                began = time.process_time()
                weights[name] = task.fit_linear(features, train.targets or [], folds).weight
                seconds[name] = time.process_time() - began
            plain, ours = seconds.values()
            ratios += [ours / plain] * bool(number)
        apart, largest = (np.abs(one).max() for one in (np.subtract(*weights.values()), weights["as it is"]))
        print(
            f"{size} texts, {features.shape[1]:,} features: {ours:.2f} s ÷ {plain:.2f} s, ratio"
            f" {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), weights {apart / largest:.0e} apart",
            flush=True,
        )


if __name__ == "__main__":
    main()
