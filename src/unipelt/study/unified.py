"""The study of the unified view on generated text: methods and settings of He et al. 2022, arXiv:2110.04366 (M).

Here it runs on the built-in task with smollm2. Where a machine has the paper's data and models, `--data EdinburghNLP/xsum` and
`--data wmt/wmt16/ro-en` take the settings of the paper's scripts (He et al. 2022), unless options give others.
"""

from typing import Any

from unipelt.data.load import SUMMARIES
from unipelt.train.records import FULL

METHODS = (
    FULL, "prompt", "prefix", "adapter", "lora(r=29)", "multi-head-parallel-adapter(length=144)",
    "parallel-adapter", "scaled-parallel-adapter", "mam(prefix=16, bottleneck=43)",
    "unipelt-ap(bottleneck=43)", "unipelt-apl(bottleneck=29)",
)  # fmt: skip
"""from adapter on, sizes are chosen so that smollm2 stores 1.65 to 1.68 million numbers with each method"""
WITH_BIASES = (FULL, "bitfit", *METHODS[1:])
"""for the paper's bases; smollm2 has no biases"""
DEFAULTS: dict[str, Any] = {"model": "smollm2", "tasks": (SUMMARIES,), "k": (500,), "methods": METHODS, "seeds": 3}
PAPER: dict[str, dict[str, Any]] = {
    "EdinburghNLP/xsum": {
        "methods": WITH_BIASES, "lr": (5e-5,), "warmup": 0.0, "label_smoothing": 0.1, "weight_decay": 0.01, "clip": 0.1, "batch_size": 16,
        "gradient_accumulation": 4, "max_length": 512, "max_target_length": 128, "max_new_tokens": 60, "num_beams": 6,
        "no_repeat_ngram_size": 3, "metric": "rouge2",
    },
    "wmt/wmt16/ro-en": {
        "methods": WITH_BIASES, "lr": (5e-5,), "warmup": 0.0, "label_smoothing": 0.1, "weight_decay": 0.01, "clip": 1.0, "batch_tokens": 4096,
        "gradient_accumulation": 4, "max_length": 150, "max_target_length": 150, "max_new_tokens": 200, "num_beams": 5,
        "metric": "loss",
    },
}  # fmt: skip
"""by data set: the settings of the scripts of He et al. 2022; they choose the epochs by steps (100,000 and 50,000), so --epochs is the user's"""


def unified_options(options: dict[str, Any]) -> dict[str, Any]:
    """These options, then the paper's settings of the data set, then this study's defaults."""
    tasks = options.get("tasks", DEFAULTS["tasks"])
    paper = PAPER.get(tasks[0], {}) if len(tasks) == 1 else {}
    return DEFAULTS | paper | options
