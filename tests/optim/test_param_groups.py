"""`param_groups`: every trainable parameter of real architectures once, in the right role."""

import pytest
import torch
from torch import nn

from steepest import Adam, Muon, Stiefel, constrain, param_groups
from steepest.norms import Spectral

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def bert():
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=12, **SMALL)
    return transformers.BertForMaskedLM(config)


def classifier():
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=12, num_labels=3, **SMALL)
    return transformers.BertForSequenceClassification(config)


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_positions=12, n_embd=16, n_layer=2, n_head=2)
    )


def llama(tie=False):
    config = transformers.LlamaConfig(vocab_size=40, num_key_value_heads=1, tie_word_embeddings=tie, **SMALL)
    return transformers.LlamaForCausalLM(config)


def vit():
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **SMALL)
    return transformers.ViTForImageClassification(config)


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, pad_token_id=0,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=8, max_source_positions=8,
        max_target_positions=8, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


class Cnn(nn.Module):
    """A residual network with every kind of convolution, and a decoder with transposed ones."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise, self.grouped = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2)
        self.signal, self.volume = nn.Conv1d(2, 4, 5), nn.Conv3d(1, 2, 2)
        self.up = nn.ConvTranspose2d(8, 3, 2)
        self.up1, self.up3 = nn.ConvTranspose1d(4, 2, 2), nn.ConvTranspose3d(2, 1, 2)
        self.gain = nn.Parameter(torch.ones(8, 1, 1))
        self.fc = nn.Linear(8, 5)


class Misc(nn.Module):
    """Attention with and without equal sizes, recurrent, bilinear and quantities that are no layers."""

    def __init__(self):
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.zeros(1, 5, 8))
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.attention = nn.MultiheadAttention(8, 2)
        self.cross = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, add_bias_kv=True)
        self.recurrent = nn.LSTM(4, 6, bidirectional=True)
        self.bilinear = nn.Bilinear(3, 4, 5)
        self.bag = nn.EmbeddingBag(7, 4)
        self.prelu = nn.PReLU()
        self.layer = nn.LayerNorm(8)


MODELS = {f.__name__.lower(): f for f in (bert, classifier, gpt2, llama, vit, whisper, Cnn, Misc)} | {
    "tied llama": lambda: llama(tie=True),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12), 2, enable_nested_tensor=False),
}


def roles(model, **options) -> dict[str, str]:
    """Name -> role, with weight decay 0 marked."""
    return {
        name: g["role"] + ("" if "weight_decay" not in g else " undecayed")
        for g in param_groups(model, **options)
        for name in g["param_names"]
    }


@pytest.mark.parametrize("name", MODELS)
def test_each_trainable_parameter_once_under_its_own_name(name):
    model = MODELS[name]()
    frozen = [p for i, p in enumerate(model.parameters()) if i % 5 == 3]
    for p in frozen:
        p.requires_grad_(False)
    groups = param_groups(model)
    listed = [(n, p) for g in groups for n, p in zip(g["param_names"], g["params"], strict=True)]
    assert sorted(id(p) for _, p in listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all(model.get_parameter(n) is p for n, p in listed)


@pytest.mark.parametrize("name", MODELS)
def test_every_optimiser_takes_the_groups_and_every_matrix_is_a_matrix(name):
    model = MODELS[name]()
    optimizer = Muon(param_groups(model))
    for group in optimizer.param_groups:
        for point in optimizer._points(group):
            if group["role"] == "matrix":
                assert point.value().ndim >= 2
                assert min(point.value().shape[-2:]) > 0
    trainable = [p for p in model.parameters() if p.requires_grad]  # Whisper's encoder positions are not
    for p in trainable:
        p.grad = torch.randn_like(p)
    before = [p.detach().clone() for p in trainable]
    optimizer.step()
    assert all(p.isfinite().all() and not torch.equal(p, old) for p, old in zip(trainable, before, strict=True))


def test_bert():
    found = roles(bert())
    layer = "bert.encoder.layer.0."
    assert found[layer + "attention.self.query.weight"] == "matrix"
    assert found[layer + "intermediate.dense.weight"] == "matrix"
    assert found[layer + "attention.self.query.bias"] == "other undecayed"
    assert found[layer + "output.LayerNorm.weight"] == "other undecayed"
    assert found["bert.embeddings.position_embeddings.weight"] == "embedding"
    assert found["bert.embeddings.word_embeddings.weight"] == "head"  # tied to the decoder
    assert "cls.predictions.decoder.weight" not in found


def test_gpt2_layers_are_seen_out_times_in():
    model = gpt2()
    found = roles(model)
    assert found["transformer.wte.weight"] == "head"  # tied
    assert found["transformer.wpe.weight"] == "embedding"
    assert "lm_head.weight" not in found
    assert found["transformer.h.0.mlp.c_fc.weight"] == "matrix"
    optimizer = Muon(param_groups(model), lr=1.0, momentum=0.0, nesterov=False, norm=Spectral("exact"))
    weight = model.transformer.h[0].mlp.c_fc.weight  # stored 16 x 64, in x out
    weight.grad = torch.randn(16, 64)
    before = weight.detach().clone()
    optimizer.step()
    step = torch.linalg.svdvals(before - weight.detach())
    torch.testing.assert_close(step, torch.full((16,), 2.0))  # sqrt(out / in); 1 if it were seen the other way


def test_llama_head_tied_or_not():
    assert roles(llama())["lm_head.weight"] == "head"
    tied = roles(llama(tie=True))
    assert tied["model.embed_tokens.weight"] == "head"
    assert "lm_head.weight" not in tied
    assert roles(llama())["model.layers.1.mlp.down_proj.weight"] == "matrix"


def test_vit():
    found = roles(vit())
    assert found["vit.embeddings.patch_embeddings.projection.weight"] == "matrix"
    assert found["vit.embeddings.cls_token"] == "other undecayed"
    assert found["vit.embeddings.position_embeddings"] == "other"
    assert found["classifier.weight"] == "matrix"


def test_convolutions():
    model = Cnn()
    found = roles(model)
    convolutions = ["stem", "depthwise", "grouped", "signal", "volume", "up", "up1", "up3", "fc"]
    assert all(found[f"{name}.weight"] == "matrix" for name in convolutions)
    assert all(found[name] == "other undecayed" for name in ("norm.weight", "norm.bias", "gain", "up.bias"))
    matrices = {
        name: point.value().shape
        for optimizer in [Muon(param_groups(model))]
        for group in optimizer.param_groups
        for point in optimizer._points(group)
        for name in point.names
    }
    assert matrices["stem.weight"] == (8, 27)
    assert matrices["signal.weight"] == (4, 10)
    assert matrices["volume.weight"] == (2, 8)
    assert matrices["up.weight"] == (3, 32)  # stored in x out
    assert matrices["up1.weight"] == (2, 8)


def test_attention_and_the_rest():
    found = roles(Misc())
    assert found["attention.in_proj_weight"] == found["attention.out_proj.weight"] == "matrix"
    assert all(found[f"cross.{x}_proj_weight"] == "matrix" for x in "qkv")
    assert found["bag.weight"] == "embedding"
    assert found["positions"] == found["recurrent.weight_ih_l0"] == "other"
    assert all(found[name] == "other undecayed" for name in ("cls", "temperature", "prelu.weight", "cross.bias_k"))


def test_fused_attention_is_three_matrices():
    model = nn.MultiheadAttention(8, 2, bias=False)
    optimizer = Muon(param_groups(model), lr=1.0, momentum=0.0, nesterov=False, norm=Spectral("exact"))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = model.in_proj_weight.detach().clone()
    optimizer.step()
    for part in (before - model.in_proj_weight.detach()).chunk(3):
        torch.testing.assert_close(torch.linalg.svdvals(part), torch.ones(8), rtol=0, atol=1e-5)


def test_other_by_name_or_pattern_or_one_string():
    model = llama()
    for other in (["model.layers.0.*"], "model.layers.0.*"):
        found = roles(model, other=other)
        assert found["model.layers.0.mlp.up_proj.weight"] == "other"
        assert found["model.layers.1.mlp.up_proj.weight"] == "matrix"
    assert roles(model, other=["no.such"]) == roles(model)


def test_constrained_parameters_come_first_and_stay_whatever_other_says():
    model = llama()
    constrain(model.model.layers[0].self_attn, "q_proj.weight", Stiefel())
    groups = param_groups(model, other="*")
    assert groups[0]["role"] == "point"
    assert groups[0]["param_names"] == ["model.layers.0.self_attn.q_proj.weight"]
    assert [g["role"] for g in groups[1:]] == ["other", "other"]


def test_layers_of_one_kind_share_a_group():
    model = nn.Sequential(*(constrain(nn.Linear(4, 4), "weight", Stiefel()) for _ in range(6)))
    assert [len(g["params"]) for g in param_groups(model)] == [6, 6]
    assert [len(g["params"]) for g in Adam(model.parameters()).param_groups] == [6, 6]


def test_bare_parameters_keep_their_order_from_build_to_build():
    layers = [constrain(nn.Linear(4, 4), "weight", Stiefel()) for _ in range(6)]
    for order in ([3, 1, 5, 0, 4, 2], [5, 4, 3, 2, 1, 0]):
        groups = Adam([p for i in order for p in layers[i].parameters()]).param_groups
        assert [[id(p) for p in g["params"]] for g in groups] == [
            [id(layers[i].weight) for i in order],
            [id(layers[i].bias) for i in order],
        ]


def test_nothing_to_train():
    model = nn.Linear(2, 2).requires_grad_(False)
    assert param_groups(model) == []
    with pytest.raises(ValueError, match="empty"):
        Adam(param_groups(model))


def test_groups_take_options_of_their_own():
    groups = param_groups(Cnn())
    for group in groups:
        group["lr"] = 0.5 if group["role"] == "matrix" else 0.25
    found = {g["role"]: g["lr"] for g in Muon(groups, lr=9.0, adamw_lr=9.0).param_groups}
    assert found == {"matrix": 0.5, "other": 0.25}
