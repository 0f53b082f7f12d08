"""The shapes in the signatures of `unipelt.forms` and of the hooks that apply changes are checked at run time, over every preset on three kinds of base."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")
from jaxtyping import install_import_hook
with install_import_hook(["unipelt.forms", "unipelt.inject.hooks"], "beartype.beartype"):
    import unipelt.forms.constants, unipelt.forms.gate, unipelt.forms.prefix, unipelt.inject.hooks
import tiny, torch, unipelt
checked = 0
for name in ("bert", "llama", "bart"):
    for preset in unipelt.PRESETS:
        for runs in (1, 3) if name == "bert" else (3,):
            model = tiny.build(name, "classifier")
            try:
                unipelt.attach(model, preset, runs=runs)
            except unipelt.UserError:
                continue
            model(**tiny.inputs(name, model)).logits.sum().backward()
            with unipelt.route(model, [0, runs - 1, 0]):
                model(**tiny.inputs(name, model))
            checked += 1
try:
    unipelt.forms.prefix.multi_head_parallel(torch.ones(2), torch.ones(2), torch.ones(2))
except Exception as error:
    print("refused" if "jaxtyping" in str(type(error)).lower() or "IndexError" in str(type(error)) else error)
from unipelt.forms.gate import mean_of_real
try:
    mean_of_real(torch.ones(2, 3), torch.ones(2, 3))
except Exception as error:
    print(type(error).__name__)
print(checked)
"""


def test_shapes_in_signatures_hold():
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    *_, wrong_shape, checked = done.stdout.split()
    assert wrong_shape == "TypeCheckError"
    assert int(checked) > 60
