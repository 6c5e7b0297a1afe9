"""What users do with adapters through PEFT, transformers and Trainer, on small models."""

import copy
import dataclasses
import json
import pathlib
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("peft")

import peft
import transformers
from transformers.pytorch_utils import Conv1D

import steepest.adapters as adapters
from steepest import Adam, param_groups
from steepest.adapters.bases import probe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

CONFIGS = {
    "loft": lambda **k: adapters.LOFTConfig(r=4, **k),
    "soda": lambda **k: adapters.SODAConfig(**k),
    "spectral": lambda **k: adapters.SpectralAdapterConfig(r=3, **k),
    "riemannlora": lambda **k: adapters.RiemannLoRAConfig(r=3, init="principal", **k),
    "orthonormal": lambda **k: adapters.RiemannLoRAConfig(r=3, init="orthonormal", **k),
    "hra": lambda **k: adapters.HRAConfig(r=4, strict=True, **k),
}
"""Rotations and additions, with bases of the weight and without, with points and without."""
families = pytest.mark.parametrize("family", CONFIGS)
BASES = ["loft", "soda", "spectral", "riemannlora"]
"""Those with bases made of the weight."""


class Block(nn.Module):
    def __init__(self, n=12):
        super().__init__()
        self.up, self.down = nn.Linear(n, 2 * n), nn.Linear(2 * n, n)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    def __init__(self, seed=0, dtype=torch.float32):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.ModuleDict({"layers": nn.ModuleList([Block() for _ in range(2)])})
            self.emb, self.head = nn.Embedding(11, 12), nn.Linear(12, 3)
        self.to(dtype)

    def forward(self, x):
        for block in self.body["layers"]:
            x = block(x)
        return self.head(x)


def inputs(*shape, dtype=torch.float32):
    return torch.randn(*shape, 12, generator=torch.Generator().manual_seed(3), dtype=dtype)


def make(family, net=None, **options):
    options = {"target_modules": ["up", "down"], "init_weights": False} | options
    return peft.get_peft_model(net or Net(), CONFIGS[family](**options))


def first(model):
    """The first adapted layer."""
    return model.base_model.model.body["layers"][0].up


def close(a, b, tolerance=1e-5):
    """Rounding of float32 through some ten products."""
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@families
def test_saved_and_loaded(family, tmp_path, capsys):
    model = make(family, modules_to_save=["head"])
    model.print_trainable_parameters()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"trainable params: {trainable:,} ||" in capsys.readouterr().out
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["default"].weight.add_(1)
    y = model(inputs(4))
    model.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        loaded = peft.PeftModel.from_pretrained(Net(), tmp_path, **options)
        close(loaded(inputs(4)), y, 1e-6)
    assert sum(p.numel() for p in loaded.parameters() if p.requires_grad) == trainable


@families
def test_merged_unmerged_unloaded(family):
    model, x = make(family), inputs(4)
    y, base = model(x), Net()(x)
    assert (y - base).abs().max() > 1e-3
    model.merge_adapter()
    close(model(x), y)
    with model.disable_adapter():
        close(model(x), base)
    close(model(x), y)
    model.merge_adapter()
    model.unmerge_adapter()
    close(model(x), y)
    close(copy.deepcopy(model).merge_and_unload(safe_merge=True)(x), y)
    assert torch.equal(make(family).unload()(x), base)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(torch.nan)
    before = copy.deepcopy(first(model).base_layer.weight)
    with pytest.raises(ValueError, match="NaN"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(first(model).base_layer.weight, before)


@families
def test_several(family, tmp_path):
    """Added, switched, saved side by side, deleted; what is left can be trained."""
    model, x = make(family), inputs(4)
    first = model(x)
    model.add_adapter("other", CONFIGS[family](target_modules=["up"], init_weights=False, seed=5))
    model.set_adapter("other")
    second = model(x)
    assert (first - second).abs().max() > 1e-3
    model.base_model.set_adapter(["default", "other"])
    both = model(x)
    close(copy.deepcopy(model).merge_and_unload(adapter_names=["default", "other"])(x), both)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(Net(), tmp_path)
    loaded.load_adapter(tmp_path / "other", "other")
    close(loaded(x), first, 1e-6)
    loaded.set_adapter("other")
    close(loaded(x), second, 1e-6)
    model.set_adapter("other")
    model.delete_adapter("default")
    assert torch.equal(model(x), second)
    assert not [n for n, _ in (*model.named_parameters(), *model.named_buffers()) if n.endswith(".default")]
    optimizer = Adam(param_groups(model), lr=0.01)
    model(x).square().sum().backward()
    optimizer.step()
    assert (model(x) - second).abs().max() > 1e-5


@pytest.mark.parametrize("family", ["soda", "riemannlora"])
def test_unmerged_after_steps_off_the_manifold(family):
    """An optimiser that knows of no manifold leaves it; then the transpose of a rotation is not its inverse."""
    model, x = make(family), inputs(4)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model(x).square().mean().backward()
    optimizer.step()
    y = model(x)
    model.merge_adapter()
    close(model(x), y)
    model.unmerge_adapter()
    with model.disable_adapter():
        close(model(x), Net()(x))


def test_deepcopy_and_pickle():
    for family in CONFIGS:
        model = make(family)
        y = model(inputs(4))
        assert torch.equal(copy.deepcopy(model)(inputs(4)), y)
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(again(inputs(4)), y)
        points, there = ([len(g["params"]) for g in param_groups(m) if g["role"] == "point"] for m in (again, model))
        assert points == there
        config = pickle.loads(pickle.dumps(model.peft_config["default"]))
        assert config == copy.deepcopy(model.peft_config["default"])
        assert config.method() == model.peft_config["default"].method()


def test_conv1d_and_lora_conversion():
    """Weights stored `(in, out)`, and PEFT's conversion to LoRA of the full rank, which is exact."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = Conv1D(6, 12), nn.Linear(6, 6)
            with torch.no_grad():
                for i, p in enumerate(self.parameters()):
                    p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) / 3)

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    for family in CONFIGS:
        model = make(family, Small(), target_modules=["a", "b"])
        y = model(inputs(4))
        converted, state = peft.convert_to_lora(model, rank=6)
        lora = peft.get_peft_model(Small(), converted)
        peft.set_peft_model_state_dict(lora, state)
        close(lora(inputs(4)), y)
        model.merge_adapter()
        close(model(inputs(4)), y)
        merged = model.merge_and_unload()
        close(merged(inputs(4)), y)
        assert merged.a.weight.is_contiguous()


@families
def test_what_is_merged_is_not_counted_twice(family):
    """The change of one adapter, and the start of another one, do not depend on whether the first is merged."""
    model = make(family)
    if not first(model).family.mergeable:
        return
    change, source = first(model).get_delta_weight("default"), first(model).source("default").weight
    model.merge_adapter()
    close(first(model).get_delta_weight("default"), change)
    close(first(model).source("default").weight, source)


@pytest.mark.filterwarnings("ignore:.*(second time|Already).*")
def test_over_another_adapter_merged_after_it():
    """(W + B A) M is not W M + B A."""
    lora = peft.LoraConfig(r=2, target_modules=["up"], init_lora_weights=False)
    model = make("loft", peft.get_peft_model(Net(), lora).base_model.model, target_modules=["up"])
    x = inputs(4)
    y = model(x)
    model.merge_adapter()
    close(model(x), y)
    model.unmerge_adapter()
    close(model(x), y)
    close(model.merge_and_unload()(x), y)


@families
def test_autocast(family):
    """Half precision of one's own choice: the bound is some roundings of bfloat16, 2^-8 each."""
    model, x = make(family), inputs(4)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().sum().backward()
    assert (y.float() - model(x)).abs().max() <= 0.05 * model(x).abs().max()


def test_layers_chosen():
    def adapted(**options):
        model = make("loft", **options)
        return [
            name.removeprefix("base_model.model.body.")
            for name, m in model.named_modules()
            if hasattr(m, "get_base_layer")
        ]

    assert adapted(layers_to_transform=[1]) == ["layers.1.up", "layers.1.down"]
    assert adapted(exclude_modules=["down"]) == ["layers.0.up", "layers.1.up"]
    assert adapted(target_modules=r".*\.0\.up") == ["layers.0.up"]
    assert adapted(target_modules="all-linear", exclude_modules=["head"]) == adapted()
    assert adapted(layers_to_transform=0, layers_pattern="layers") == ["layers.0.up", "layers.0.down"]


def test_refusals():
    with pytest.raises(ValueError, match=r"Target modules .*nothing"):
        make("loft", target_modules=["nothing"])
    with pytest.raises(ValueError, match="emb is a Embedding, but STEEPEST_LOFT adapts linear layers"):
        make("loft", target_modules=["emb"])
    with pytest.raises(ValueError, match=r"r: got 40"):
        peft.get_peft_model(Net(), adapters.LOFTConfig(r=40, target_modules=["up"]))
    with pytest.raises(ValueError, match=r"out_proj belongs to torch.nn.MultiheadAttention.*never calls it"):
        make("loft", nn.Sequential(nn.MultiheadAttention(12, 2)), target_modules=["out_proj"])
    with pytest.raises(ValueError, match="layers_pattern: is of use with layers_to_transform"):
        make("loft", layers_pattern="layers")
    with pytest.raises(ValueError, match="calibrate"):
        make("loft", support="gradient")
    with torch.device("meta"):
        net = Net()
    with pytest.raises(ValueError, match="meta device"):
        make("loft", net)
    model = make("loft")
    model.add_adapter("other", CONFIGS["loft"](target_modules=["up"]))
    with pytest.raises(ValueError, match=r"adapter_names: .*one batch for each adapter"):
        model(inputs(2), adapter_names=["default", "other"])


def test_half_precision_starts_exactly():
    """On a base in bfloat16 the trained tensors start in float32, where the start is the identity to its rounding."""
    x = inputs(6, dtype=torch.bfloat16)
    for family in CONFIGS:
        model = make(family, Net(dtype=torch.bfloat16), init_weights=True)
        assert torch.equal(model(x), Net(dtype=torch.bfloat16)(x)), family
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        narrow = peft.get_peft_model(
            Net(dtype=torch.bfloat16), CONFIGS[family](target_modules=["up"]), autocast_adapter_dtype=False
        )
        assert {p.dtype for p in narrow.parameters() if p.requires_grad} == {torch.bfloat16}
        assert narrow.half()(x.half()).isfinite().all()


class Packed(nn.Module):
    """A linear layer of whole numbers, a factor for each row: as a layer for inference has it."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("scale", linear.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale.to(x.dtype), self.bias)


def packed():
    net = Net()
    for block in net.body["layers"]:
        block.up, block.down = Packed(block.up), Packed(block.down)
    return net


@pytest.mark.parametrize("family", ["loft", "riemannlora"])
def test_quantised_base(family, tmp_path):
    model, x = make(family, packed(), init_weights=True), inputs(4)
    close(model(x), packed()(x))
    layer = first(model)
    w = layer.base_layer.weight * layer.base_layer.scale
    close(layer.get_delta_weight("default"), torch.zeros_like(w))
    if family == "riemannlora":  # U = W V with the weight that is stood for
        t = layer.tensors("default")
        close(t["U"], w @ t["V"])
    optimizer = Adam(param_groups(model), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    y = model(x)
    model.save_pretrained(tmp_path)
    close(peft.PeftModel.from_pretrained(packed(), tmp_path)(x), y, 1e-6)
    with pytest.raises(ValueError, match=r"Packed is quantised.*unquantised to merge"):
        model.merge_adapter()
    assert torch.equal(model(x), y)


def test_sharded_base():
    """FSDP2 on one process: bases from the gathered weight, the same output and gradients; no merging."""
    from torch.distributed.fsdp import fully_shard

    def run(sharded):
        net = Net()
        if sharded:
            fully_shard(net)
        model = make("riemannlora", net)
        y = model(inputs(4))
        y.square().sum().backward()
        return model, [y, *(p.grad for p in model.parameters() if p.requires_grad)]

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model, found = run(True)
        for here, there in zip(found, run(False)[1], strict=True):
            close(here, there, 1e-6)
        with pytest.raises(ValueError, match="base weight is sharded"):
            model.merge_adapter()
    finally:
        torch.distributed.destroy_process_group()


# --- transformers ---


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=2,
        initializer_range=0.3,
    )
    return transformers.BertForSequenceClassification(config).eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=20, initializer_range=0.2
    )
    return transformers.GPT2LMHeadModel(config).eval()


TOKENS = torch.arange(10).reshape(2, 5) + 3


@pytest.mark.parametrize("family", ["loft", "soda", "riemannlora"])
def test_inside_transformers(family, tmp_path):
    """`model.add_adapter`, `save_pretrained`, `load_adapter`, without a PeftModel."""
    model, config = bert(), CONFIGS[family](target_modules=["query", "value"], init_weights=False)
    base = model(TOKENS).logits
    model.add_adapter(config)
    y = model(TOKENS).logits
    assert (y - base).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    loaded = bert()
    loaded.load_adapter(str(tmp_path))
    close(loaded(TOKENS).logits, y, 1e-6)
    loaded.disable_adapters()
    assert torch.equal(loaded(TOKENS).logits, base)
    loaded.enable_adapters()
    loaded.delete_adapter("default")
    assert torch.equal(loaded(TOKENS).logits, base)


def test_tied_weights():
    """An adapter on the output layer leaves the embedding alone, which has the same weight; merging is warned of."""
    model = peft.get_peft_model(gpt2(), CONFIGS["loft"](target_modules=["lm_head"], init_weights=False))
    head, emb = model.base_model.model.lm_head, model.base_model.model.transformer.wte
    assert head.weight is emb.weight
    assert torch.equal(emb.weight, gpt2().transformer.wte.weight)
    assert (model(TOKENS).logits - gpt2()(TOKENS).logits).abs().max() > 1e-3
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        model.merge_and_unload()


def test_default_targets_and_injection():
    """Without targets those of PEFT's LoRA, here a Conv1D; injected without a PeftModel it is the same model."""
    model = peft.get_peft_model(gpt2(), adapters.LOFTConfig(r=4, init_weights=False))
    assert isinstance(model.base_model.model.transformer.h[0].attn.c_attn.get_base_layer(), Conv1D)
    config = adapters.LOFTConfig(r=4, init_weights=False)
    injected = peft.inject_adapter_in_model(config, gpt2())
    assert torch.equal(injected(TOKENS).logits, model(TOKENS).logits)


def test_auto_model(tmp_path):
    base, folder = bert(), tmp_path / "base"
    base.save_pretrained(folder)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    config = CONFIGS["loft"](target_modules=["query"], modules_to_save=["classifier"], init_weights=False)
    model = peft.get_peft_model(base, dataclasses.replace(config, task_type="SEQ_CLS")).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter").eval()
    close(loaded(TOKENS).logits, model(TOKENS).logits, 1e-6)


def test_model_card_names_the_package(tmp_path):
    """PEFT cannot import what it does not know; whoever reads the card can."""
    model = make("loft")
    model.add_adapter("other", CONFIGS["loft"](target_modules=["up"]))
    for _ in range(2):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text().count("`import steepest.adapters` before PEFT loads it") == 1
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "STEEPEST_LOFT"
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("A project of its own.\n")
    CONFIGS["loft"]().save_pretrained(tmp_path / "project" / "config")
    assert (tmp_path / "project" / "README.md").read_text() == "A project of its own.\n"


@pytest.mark.slow
def test_loading_without_the_package_is_a_key_error(tmp_path):
    """What PEFT says then: the type's name, which has ours in it."""
    make("loft").save_pretrained(tmp_path)
    code = f"import peft; peft.PeftConfig.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "KeyError: 'STEEPEST_LOFT'" in done.stderr
    code = "import steepest.adapters, " + code.removeprefix("import ")
    assert not subprocess.run([sys.executable, "-c", code], capture_output=True).returncode


def trainer(model, folder, **options):
    from steepest import Muon

    data = [{"input_ids": TOKENS[i % 2], "labels": TOKENS[i % 2]} for i in range(24)]
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        max_steps=4,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        seed=1,
        **options,
    )
    optimizer = Muon(param_groups(model), lr=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 / (1 + i))
    return transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, schedule))


@pytest.mark.parametrize("family", ["riemannlora", pytest.param("soda", marks=pytest.mark.slow)])
def test_trainer_resumes_bit_for_bit(family, tmp_path):
    """Points on manifolds under Muon; checkpoints hold the adapter alone."""

    def model():
        return make(family, gpt2(), target_modules=["c_attn"], init_weights=True)

    through = model()
    trainer(through, tmp_path / "a").train()
    resumed = model()
    trainer(resumed, tmp_path / "b").train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    trained = [(n, p) for n, p in through.named_parameters() if p.requires_grad]
    assert any((p - dict(model().named_parameters())[n]).abs().max() > 1e-4 for n, p in trained)
    for name, p in trained:
        assert torch.equal(p, dict(resumed.named_parameters())[name]), name


@pytest.mark.parametrize("family", ["loft", "soda"])
def test_gradient_checkpointing(family):
    """The same gradients, with activations computed twice."""

    def gradients(checkpointing):
        model = make(family, gpt2(), target_modules=["c_attn", "c_fc"], init_weights=False).train()
        for m in model.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    for here, there in zip(gradients(True), gradients(False), strict=True):
        close(here, there, 1e-6)


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.slow] * (f != "loft")) for f in CONFIGS])
def test_compiled(family):
    """The layer is one graph, forward and backward, and gives the same."""
    model, x = make(family, nn.Sequential(nn.Linear(12, 12)), target_modules=["0"]), inputs(4)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    p = next(p for p in model.parameters() if p.requires_grad)
    results = []
    for f in (model, compiled):
        p.grad = None
        y = f(x)
        y.square().sum().backward()
        results.append((y, p.grad))
    for here, there in zip(*results, strict=True):
        close(here, there)


# --- bases that are found again ---


class OtherLapack:
    """Decompositions as another library might give them: other signs, and other vectors where singular values meet."""

    def __init__(self, monkeypatch):
        self.used = 0
        for name in ("eigh", "svd", "qr"):
            monkeypatch.setattr(torch.linalg, name, self.of(name, getattr(torch.linalg, name)))

    def signs(self, k, like):
        self.used += 1
        bits = torch.randint(2, (k,), generator=torch.Generator().manual_seed(self.used))
        return (2 * bits - 1).to(like)

    def of(self, name, original):
        def eigh(a, *args, **kwargs):
            values, v = original(a, *args, **kwargs)
            return values, turned(v, values) * self.signs(v.shape[-1], v)

        def svd(a, *args, **kwargs):
            u, s, vh = original(a, *args, **kwargs)
            signs = self.signs(s.shape[-1], vh)
            k = s.shape[-1]
            return torch.cat([u[..., :k] * signs, u[..., k:]], -1), s, torch.cat([signs[:, None] * vh[:k], vh[k:]])

        def qr(a, *args, **kwargs):
            q, r = original(a, *args, **kwargs)
            signs = self.signs(r.shape[-2], q)
            return q * signs, signs[:, None] * r

        return {"eigh": eigh, "svd": svd, "qr": qr}[name]


def turned(v, values):
    """The leading pair turned by one radian where its values are the same."""
    if values.shape[-1] < 2 or values[-1] - values[-2] > 1e-9 * values[-1]:
        return v
    c, s = torch.tensor(1.0, dtype=v.dtype).cos(), torch.tensor(1.0, dtype=v.dtype).sin()
    return torch.cat([v[:, :-2], v[:, -2:] @ torch.stack([torch.stack([c, -s]), torch.stack([s, c])])], dim=1)


def twins(net):
    """Give each adapted weight two equal leading singular values."""
    with torch.no_grad():
        for block in net.body["layers"]:
            for layer in (block.up, block.down):
                u, s, vh = torch.linalg.svd(layer.weight.double(), full_matrices=False)
                s[0] = s[1]
                layer.weight.copy_(u * s @ vh)
    return net


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_loaded_with_another_lapack(family, equal, tmp_path, monkeypatch):
    prepare = twins if equal else (lambda net: net)
    model, net = make(family, prepare(Net())), prepare(Net())
    y = model(inputs(4))
    model.save_pretrained(tmp_path)
    other = OtherLapack(monkeypatch)
    loaded = peft.PeftModel.from_pretrained(net, tmp_path)
    assert other.used
    close(loaded(inputs(4)), y)


@pytest.mark.parametrize("family", [*BASES, "orthonormal", "hra"])
def test_turned_bases_are_turned_back(family):
    """As if every vector of the basis had come out another one, and what is made of them as well."""
    model = make(family)
    state, layer = model.state_dict(), first(model)
    right = {n: t.clone() for n, t in layer.tensors("default").items()}
    basis = layer.methods["default"].basis
    for name in (name for name in layer.family.frozen if name in right):
        v = layer.tensors_of(name)["default"]
        turn = torch.linalg.qr(torch.randn(v.shape[-1], v.shape[-1]))[0]
        v.copy_(v @ turn if name == basis else torch.zeros_like(v))
    model.load_state_dict(state)
    for name, t in layer.tensors("default").items():
        close(t, right[name])


def test_the_other_lapack_is_another_one(tmp_path, monkeypatch):
    """Without a probe the loaded model would be another one: the test above can fail."""
    model = make("loft")
    y = model(inputs(4))
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("steepest.adapters.layer.matches", lambda basis, stored: True)
    monkeypatch.setattr("steepest.adapters.bases.fix_signs", lambda v: v)
    OtherLapack(monkeypatch)
    assert (peft.PeftModel.from_pretrained(Net(), tmp_path)(inputs(4)) - y).abs().max() > 1e-3


@pytest.mark.parametrize("family", BASES)
def test_another_base_is_refused(family, tmp_path):
    model = make(family)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="base"):
        peft.PeftModel.from_pretrained(Net(seed=1), tmp_path)
    assert any("probe" in name for name in model.state_dict())


@pytest.mark.parametrize("family", BASES)
def test_saved_bases_need_no_probe(family, tmp_path):
    model = make(family, save_bases=True)
    assert not any("probe" in name for name in model.state_dict())
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(Net(seed=1), tmp_path)  # another base weight, the same bases
    layer, there = (first(m) for m in (model, loaded))
    for name, value in layer.tensors("default").items():
        assert torch.equal(value, there.tensors("default")[name]), name


@families
def test_base_weights_loaded_later(family):
    """The whole model's state into one whose base was another when its adapter was made."""
    model, x = make(family), inputs(4)
    late = make(family, Net(seed=1))
    late.load_state_dict(model.state_dict())
    close(late(x), model(x))


def test_chosen_inputs_loaded_later():
    """A choice of inputs is no basis that could be found again, so it is saved."""
    options = {"support": "coordinates", "target_modules": ["up"], "init_weights": False}
    model = peft.get_peft_model(Net(), adapters.LOFTConfig(r=4, **options))
    late = peft.get_peft_model(Net(seed=1), adapters.LOFTConfig(r=4, **options))
    late.load_state_dict(model.state_dict())
    close(late(inputs(4)), model(inputs(4)))


def test_probes_in_half_precision():
    """A model cast to bfloat16 as a whole, probes included, is loaded: a probe is off by its rounding."""
    for family in BASES:
        model = make(family).to(torch.bfloat16)
        again = make(family)
        again.load_state_dict(model.state_dict())
        layer = first(again)
        table = getattr(layer, layer.prefix + layer.methods["default"].basis)
        here = first(make(family))
        close(table["default"], getattr(here, here.prefix + here.methods["default"].basis)["default"], 2e-2)


def test_probe_is_the_same_everywhere():
    """Its signs come from an integer formula: these are the numbers that files of adapters have in them."""
    v = torch.eye(5, 2, dtype=torch.float64)
    assert ["".join("-+"[int(x > 0)] for x in column) for column in probe(v).T] == ["----+-++++", "-+-+----+-"]


# --- a family of the user's own ---


def test_registered_by_a_user(tmp_path):
    """A family outside the package: a class and a call; the model card names its module."""

    @dataclasses.dataclass(frozen=True)
    class Gains(adapters.Adapter):
        trained = ("gain",)

        def start(self, source, bases):
            return {"gain": source.weight.new_zeros(source.weight.shape[1])}

        def turn(self, t, x):
            return x * (1 + t["gain"])

        turn_back = turn

        def count(self, out_features, in_features):
            return in_features

        @classmethod
        def examples(cls):
            return [cls()]

    try:
        config = adapters.register(Gains)
        assert adapters.register(Gains) is config
        assert adapters.GainsConfig is config
        model = peft.get_peft_model(Net(), config(target_modules=["up"], init_weights=False))
        y = model(inputs(4))
        model.save_pretrained(tmp_path)
        close(peft.PeftModel.from_pretrained(Net(), tmp_path)(inputs(4)), y, 1e-6)
        close(model.merge_and_unload()(inputs(4)), y)
        assert f"import {__name__}`" in pathlib.Path(tmp_path / "README.md").read_text()
    finally:
        adapters.FAMILIES.pop("Gains", None)
