"""What cannot be done is refused, with the reason and what to do; what can be written can be read again."""

import json
import math
from itertools import product

import pytest
import tiny
import torch

import unipelt
from laws.lawbook import (
    FULL,
    attached,
    changes_together,
    compatible_changes,
    on_each,
    result,
    scalar,
    small,
    why_refused,
)
from unipelt import (
    PRESETS,
    Bias,
    Bottleneck,
    Change,
    Gate,
    Kronecker,
    Learned,
    LowRank,
    Mixture,
    Norm,
    Prefix,
    UserError,
)
from unipelt.errors import CheckpointError, DataError, SiteError, SpecError
from unipelt.inject.state import mixture_state
from unipelt.spec import FORMS, RULES, equation, mixture
from unipelt.spec.compatibility import READS, SITES

WEIGHTS = {"number": 0.5, "learned": Learned(), "gate": Gate(), "group": Gate(group="g")}
ALL = [(arch, what) for arch in tiny.ARCHITECTURES for what in PRESETS]


def is_compatible(form: str, site: str, reads: str, weight: str) -> bool:
    place = site.split(":")[0] + ":" * (":" in site)
    return any(form in la.forms and place in la.sites and reads in la.reads and weight in la.weights for la in RULES)


@pytest.mark.parametrize(("form", "site"), list(product(FORMS, SITES)))
def test_every_combination_has_an_equation_or_a_reason(form: str, site: str):
    site = site + "all-linear" if site.endswith(":") else site
    for reads, weight in product(READS, WEIGHTS):
        settings = {"form": FORMS[form](), "site": site, "reads": reads, "weight": WEIGHTS[weight]}
        if is_compatible(form, site, reads, weight):
            Change(**settings)
            assert equation(*settings.values())
        else:
            with pytest.raises(SpecError, match=f"{form} at .* refused, because .+"):
                Change(**settings)


@pytest.mark.parametrize(("arch", "preset"), [(a, p) for a, p in ALL if why_refused(a, small(p))])
def test_a_preset_that_a_base_has_no_place_for_is_refused(arch: str, preset: str):
    with pytest.raises(SiteError, match=why_refused(arch, small(preset))):
        attached(arch, preset)


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_a_compatible_change_is_attached_or_refused_with_its_reason(arch: str):
    """Alone on three architectures, together with others on the rest."""
    changes = compatible_changes(arch)
    model = tiny.build(arch)
    for change in changes.values():
        if reason := why_refused(arch, change):
            with pytest.raises(SiteError, match=reason):
                unipelt.attach(model, change)
    taken = changes if arch in FULL else changes_together(arch, 1)
    for label, change in taken.items():
        if why_refused(arch, change) is None:
            assert mixture_state(unipelt.attach(model, change)).mixture.name == label
            unipelt.detach(model)


@pytest.mark.parametrize("preset", ["lora", "bitfit"])
def test_relative_positions_belong_to_no_run(preset: str):
    """DeBERTa maps them with its query and key: one run is right, several are refused."""
    attached("deberta-v2", preset)
    with pytest.raises(SiteError, match=r"have no batch axis.*use one run and a fixed weight"):
        attached("deberta-v2", preset, runs=2)
    attached("deberta-v2", "lora(target_modules='value')", runs=2)
    attached("deberta-v2", preset, runs=2, build={"relative_attention": False})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lorra", r"method 'lorra': did you mean 'lora'"),
        ("unipelt", r"did you mean .*'unipelt-apl?'"),
        ("lora(rank=4)", r"method 'lora' has no option 'rank'"),
        ("lora(aplha=4)", r"no option 'aplha': did you mean 'alpha'"),
        ("bitfit(size=3)", r"no option 'size': it has none"),
        ("lora(4)", r"expected NAME\(option=value"),
        ("lora(r=4", r"expected NAME\(option=value"),
        ("lora(r=4) ; x", r"expected NAME\(option=value"),
        ("lora(r=__import__)", r"expected NAME\(option=value"),
        ("lora(r=0)", r"low_rank\(r=0\): expected a whole number of at least 1"),
        ("lora(r=2.5)", r"expected a whole number"),
        ("lora(dropout=1.0)", r"expected a probability below 1"),
        ("adapter(init='brt')", r"init='brt'.*did you mean 'bert'"),
        ("houlsby(activation='rellu')", r"did you mean 'relu'"),
        ("unipelt-apl(pool='tokens')", r"did you mean 'token'"),
        ("parallel-adapter(reads='rezidual')", r"did you mean 'residual'"),
        ("compacter(bottleneck=6)", r"size must be a multiple of terms"),
        ("full", r"'full' is not a mixture: full fine-tuning trains the base itself"),
        ("adapter(layers=[-1])", r"expected whole numbers from 0"),
        ("adapter(layers=[])", r"layers=\[\]: expected whole numbers from 0, one at least"),
        ("adapter(layers=[True])", r"layers=\[True\]: expected whole numbers from 0"),
        ("adapter(layers=3)", r"layers=3: expected whole numbers from 0, one at least, or a range such as 6-11"),
        ("adapter(layers=11-6)", r"layers='11-6': expected whole numbers from 0, one at least, or a range"),
        ("adapter(layers='6-')", r"layers='6-': expected whole numbers from 0, one at least, or a range"),
        ("lora(r=6-11)", r"low_rank\(r='6-11'\): expected a whole number"),
        ("lora(target_modules=[])", r"target_modules=\[\]: expected at least one linear"),
        ("lora(target_modules=3)", r"lora\(target_modules=3\): an option has another type than its default"),
        ("lora(r=2, r=3)", r"r is given 2 times; expected once"),
        ("lora(alpha=0)", r"expected a number above 0, because with 0 the change has no effect"),
        ("lora(alpha=1e400)", r"expected a number of at least 0, and at most"),
        ("lora(r=1000000000)", r"expected a whole number of at least 1, and at most 1048576"),
        ("scaled-parallel-adapter(s=1e400)", r"weight=inf: expected a finite number"),
        ("scaled-parallel-adapter(s='x')", r"weight='x': expected a finite number"),
        ("unipelt-apl(prefix=0)", r"unipelt-apl\(prefix=0\): prefix\(length=0\): expected"),
    ],
)
def test_a_misspelt_mixture_names_the_nearest(text: str, words: str):
    with pytest.raises(SpecError, match=words):
        mixture(text)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("head", "trian", "did you mean 'train'"),
        ("head", 3, "head=3: known: frozen, paper, train"),
        ("mixture", 3, "got int; expected the name of a method"),
        (
            "mixture",
            Change(form=LowRank(), site="query", reads="input"),
            r"got Change; expected .* or a Mixture\(\(change, …\)\)",
        ),
        ("pooling", "men", "did you mean 'mean'"),
        ("head_modules", ["clasifier"], "did you mean 'classifier'"),
        ("mixture", "lora(target_modules='qery')", "did you mean .*'query'"),
        ("mixture", "adapter(layers=[2])", "of a base with 2 layers; they count from 0"),
        ("mixture", "compacter(terms=3, bottleneck=6)", "terms must divide both"),
    ],
)
def test_a_misspelt_option_of_attach_names_the_nearest(option: str, value, words: str):
    with pytest.raises(UserError, match=words):
        unipelt.attach(tiny.build("bert"), **{"mixture": "adapter"} | {option: value})


def test_an_unknown_architecture_names_the_row_to_add():
    model = tiny.build("bert")
    model.config.model_type = "berd"
    with pytest.raises(SiteError, match=r"'berd' has no entry .*'bert'.*discover=True.*stacks="):
        unipelt.attach(model, "lora", discover=False)


def test_chunked_feed_forward_is_refused():
    with pytest.raises(SiteError, match=r"config\.chunk_size_feed_forward = 0"):
        attached("bert", "adapter", build={"chunk_size_feed_forward": 2})


def test_what_is_no_model_is_refused():
    with pytest.raises(SiteError, match="expected a transformers PreTrainedModel; got Linear"):
        unipelt.attach(torch.nn.Linear(2, 2), "lora")


@pytest.mark.parametrize(
    "use",
    [
        unipelt.detach,
        unipelt.merge,
        unipelt.trainable_parameters,
        lambda model: unipelt.save(model, "nowhere"),
        lambda model: unipelt.export_peft(model, "nowhere"),
        lambda model: unipelt.export_merged(model, "nowhere"),
        lambda model: unipelt.fix_gates(model, {}),
        lambda model: unipelt.simplify_gates(model, []),
        *(lambda model, block=block: block(model).__enter__()
          for block in (unipelt.record_gates, unipelt.route, unipelt.disabled)),
    ],
)  # fmt: skip
def test_a_plain_model_has_nothing_to_use(use):
    with pytest.raises(SiteError, match="BertForSequenceClassification has nothing attached; call"):
        use(tiny.build("bert"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"low_rank_query": math.nan}, r"low_rank_query: nan, expected a finite number, or 2 of them, one per layer"),
        ({"low_rank_query": [0.5, math.inf]}, r"low_rank_query: \[0.5, inf\], expected a finite number"),
        ({"low_rank_query": None}, "low_rank_query: None, expected a finite number"),
        ({"low_rank_query": "half"}, "low_rank_query: 'half', expected a finite number"),
        ({"low_rank_query": [[0.5, 0.5]]}, "expected a finite number"),
        ({"low_rank_query": torch.rand(3)}, "3 values for 2 layers"),
        ({"low_rank_key": 0.5}, "no gated change 'low_rank_key' is attached: did you mean 'low_rank_query'"),
        ({3: 0.5}, "no gated change 3 is attached: known: "),
        (0.5, "values=0.5: expected a dict of changes' names and values; gated: bottleneck_ffn, prefix_heads"),
    ],
)
def test_a_gate_is_fixed_to_finite_numbers(values, words: str):
    model = attached("bert", "unipelt-apl")
    before = mixture_state(model)
    with pytest.raises(SpecError, match=words):
        unipelt.fix_gates(model, values)
    assert mixture_state(model) is before and before.handles


def test_a_gate_can_be_fixed_to_a_recorded_tensor_and_only_once():
    model = attached("bert", Mixture((Change(form=LowRank(r=2), site="query", reads="input", weight=Gate()),), "mine"))
    with unipelt.record_gates(model) as gates:
        model(**tiny.inputs("bert", model))
    means = torch.stack([values[0].mean() for values in gates.values()])
    unipelt.fix_gates(model, {"low_rank_query": means})
    assert [p.item() for name, p in mixture_state(model).named_parameters() if "scale" in name] == means.tolist()
    with pytest.raises(SpecError, match="'low_rank_query' is attached: 'mine' has no gates, or none any more"):
        unipelt.fix_gates(model, {"low_rank_query": 0.5})


@pytest.mark.parametrize("arch", ["bert", "modernbert", "bart"])
def test_packed_input_with_a_gate_that_pools_is_refused(arch: str):
    model = attached(arch, "unipelt-apl", top="base")
    given = tiny.inputs(arch, model, pads=())
    given["attention_mask"] = torch.ones(3, 1, 9, 9, dtype=torch.bool)
    with pytest.raises(SiteError, match=r"is not \[batch, seq\].*unpack them, or use Gate\(pool='token'\)"):
        model(**given)


def test_packed_input_without_a_pooled_gate_is_two_sequences():
    """Block-diagonal attention: neither half sees the other, with a prefix and a token-wise gate for both."""
    model = attached("bert", "unipelt-apl(pool='token')", top="base")
    given = tiny.inputs("bert", model, batch=1, length=8, pads=())
    block = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).bool()[None, None]
    positions = torch.arange(4).repeat(2)[None]
    packed = result(model(input_ids=given["input_ids"], attention_mask=block, position_ids=positions))
    for half in (slice(0, 4), slice(4, 8)):
        alone = result(model(input_ids=given["input_ids"][:, half]))
        torch.testing.assert_close(packed[:, half], alone)


@pytest.mark.parametrize("name", PRESETS)
def test_a_mixture_survives_json(name: str):
    for before in (small(name), PRESETS[name]()):
        after = Mixture.from_json(before.to_json())
        assert after == before and after.to_json() == before.to_json()


@pytest.mark.parametrize("arch", ["bert"])
def test_every_compatible_change_survives_json(arch: str):
    for change in compatible_changes(arch).values():
        assert Mixture.from_json(change.to_json()) == change


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: d | {"format": 2}, "has format 2; this version reads format 1"),
        (lambda d: d | {"chnges": []}, "has no 'chnges': did you mean 'changes'"),
        (lambda d: d | {"changes": None}, "needs 'changes', a list"),
        (lambda d: d | {"changes": [{"form": {"low_rank": {}}}]}, "a change needs 'site'"),
        (lambda d: d | {"changes": [d["changes"][0] | {"form": {"lowrank": {}}}]}, "did you mean 'low_rank'"),
        (lambda d: d | {"changes": [d["changes"][0] | {"form": {"low_rank": {"rr": 1}}}]}, "has no 'rr'"),
        (lambda d: d | {"changes": [d["changes"][0] | {"weight": {"gait": {}}}]}, "did you mean 'gate'"),
        (lambda d: d | {"changes": [d["changes"][0] | {"form": {"low_rank": 3}}]}, "its settings are an object; got 3"),
        (lambda d: [], "has format 'list'"),
    ],
)
def test_a_spoilt_mixture_says_where(spoil, words: str):
    with pytest.raises(SpecError, match=words):
        Mixture.from_json(json.dumps(spoil(small("lora").to_dict())))


def test_text_that_is_no_json_is_refused():
    with pytest.raises(SpecError, match="the mixture is not JSON"):
        Mixture.from_json("{")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Mixture(("lora",)),
        lambda: Mixture(Change(form=LowRank(), site="query", reads="input")),
        lambda: Mixture(3),
        lambda: Mixture((), 3),
        lambda: Change(form=LowRank(), site=3, reads="input"),
        lambda: Change(form=LowRank(), site=("query", 3), reads="input"),
        lambda: Change(form=LowRank(), site="query", reads=["input"]),
        lambda: Change(form=LowRank(), site="query", reads="input", layers=1),
        lambda: Change(form=LowRank(), site="query", reads="input", weight=math.nan),
        lambda: Change(form=LowRank(), site="query", reads="input", weight=Learned(start=math.inf)),
        lambda: Change(form=LowRank(), site="query", reads="input", weight=Gate(group=3)),
        lambda: Change(form=LowRank(), site="query", reads="input", weight=Gate(pool=3)),
        lambda: Mixture.from_json("[" * 100_000),
        lambda: Change(form="lora", site="query", reads="input"),
        lambda: Change(form=LowRank(), site=(), reads="input"),
        lambda: Change(form=LowRank(), site="query", reads="input", weight="half"),
        lambda: Change(form=LowRank(), site="query", reads="input", weight=True),
        lambda: Change(form=Bottleneck(size=0), site="ffn", reads="output"),
        lambda: Change(form=Prefix(length=0), site="heads", reads="queries"),
        lambda: Change(form=Kronecker(size=5, terms=2), site="ffn", reads="output"),
        lambda: Change(form=Norm(), site="norms", reads="input", weight=Gate()),
        lambda: Change(form=Bias(), site="biases", reads="nothing", weight=Gate()),
    ],
)
def test_a_wrong_setting_is_refused(wrong):
    with pytest.raises(SpecError):
        wrong()


def test_no_setting_of_a_relu_prefix_is_passed_over():
    """It has no MLP: asked for one it says so, and none is what it has if nothing is asked."""
    with pytest.raises(
        SpecError, match=r"prefix\(function='relu', mlp=512\): a relu prefix has no MLP; expected mlp=0"
    ):
        Change(form=Prefix(function="relu", mlp=512), site="heads", reads="queries")
    assert (Prefix(function="relu").mlp, Prefix().mlp) == (0, 512)
    with pytest.raises(SpecError, match="a softmax prefix has no LayerNorm"):
        Change(form=Prefix(norm=True), site="heads", reads="queries")
    made = attached(
        "bert", Mixture((Change(form=Prefix(function="relu", length=3), site="heads", reads="queries"),), "relu")
    )
    names = {
        name.rsplit(".", 1)[-1] for name, _ in mixture_state(made).named_parameters() if not name.startswith("head.")
    }
    assert names == {"key", "value"}


def test_every_mistake_is_a_user_error():
    assert all(issubclass(kind, UserError) for kind in (SpecError, SiteError, DataError, CheckpointError))


@pytest.mark.parametrize("arch", on_each("unipelt-apl"))
def test_a_half_precision_base_keeps_its_activations_and_learns_in_float32(arch: str):
    model = attached(arch, "unipelt-apl", dtype=torch.bfloat16, attn=tiny.ARCHITECTURES[arch].attention[-1])
    seen: set[torch.dtype] = set()
    for path, module in model.named_modules():
        if not path.startswith("unipelt.") and isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype))
    output = result(model(**tiny.inputs(arch, model)))
    assert output.dtype == torch.bfloat16 and seen == {torch.bfloat16}
    scalar(output.float()).backward()
    for name, parameter in mixture_state(model).named_parameters():
        assert parameter.dtype == torch.float32 and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_learns_beside_a_half_precision_base(preset: str):
    model = attached("bert", preset, dtype=torch.bfloat16, attn="sdpa")
    exact = attached("bert", preset, dtype=torch.float32, attn="sdpa")
    given = tiny.inputs("bert", model)
    with unipelt.record_gates(model) as values:
        output = result(model(**given))
    scalar(output.float()).backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in mixture_state(model).parameters())
    assert all(value.dtype == torch.float32 for each in values.values() for value in each)
    torch.testing.assert_close(output.float(), result(exact(**given)), atol=0.15, rtol=0.1)  # bfloat16 has 8 bits
