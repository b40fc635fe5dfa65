"""Small networks with trained slices, and peft's adapted networks compared with them."""

import copy

import torch
import transformers
from peft import PeftModel
from torch import optim

from slicefine_pl.slicing import slice_model

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
WORDS = {"input_ids": torch.randint(20, (2, 5), generator=torch.Generator().manual_seed(1))}
PIXELS = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))}


def bert():
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, num_labels=3, **SIZES)
    return transformers.BertForSequenceClassification(config), WORDS, {"also_train": "classifier"}


def gpt2():
    config = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config), WORDS, {}


def llama():
    config = transformers.LlamaConfig(vocab_size=20, num_key_value_heads=1, tie_word_embeddings=False, **SIZES)
    return transformers.LlamaForCausalLM(config), WORDS, {"targets": ["embed_tokens", "_proj"]}


def outputs(net, inputs):
    """All floating-point outputs in eval mode, as one vector."""
    with torch.no_grad():
        found = net.eval()(**inputs)
    values = [found] if isinstance(found, torch.Tensor) else [each for each in found.values() if torch.is_tensor(each)]
    return torch.cat([each.flatten() for each in values])


def made(maker, dtype=torch.float64):
    """A base, its inputs and its settings of slices."""
    torch.manual_seed(0)
    base, inputs, settings = maker()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    inputs = {name: each.to(dtype) if each.is_floating_point() else each for name, each in inputs.items()}
    return base.to(dtype).eval(), inputs, settings


def trained(base, inputs, path, steps=6, interval=2, **settings):
    """Train slices of a copy of the base with two moves, and save them."""
    net = copy.deepcopy(base)
    handle = slice_model(net, **{"rank": 2, **settings})
    optimizer = optim.SGD([each for each in net.parameters() if each.requires_grad], lr=0.3)
    net.train()
    for step in range(steps):
        optimizer.zero_grad()
        found = net(**inputs)
        values = [found] if isinstance(found, torch.Tensor) else found.values()
        sum(each.float().square().mean() for each in values if torch.is_tensor(each)).sqrt().backward()
        optimizer.step()
        if interval and step % interval == interval - 1 and step < steps - 1:
            handle.move()
    handle.save(path, "some/base")
    handle.close()
    return net.eval()


def error(found, expected):
    return float(
        torch.linalg.vector_norm(found.double() - expected.double()) / torch.linalg.vector_norm(expected.double())
    )


def check(net, base, inputs, folder, tolerance):
    """The base with the adapter computes what was trained, and merges to its weights."""
    adapted = PeftModel.from_pretrained(base, folder)
    expected = outputs(net, inputs)
    adapter = error(outputs(adapted, inputs), expected)
    merged = adapted.merge_and_unload()
    found = merged.state_dict()
    assert adapter < tolerance
    assert error(outputs(merged, inputs), expected) < tolerance
    assert found.keys() == net.state_dict().keys()
    for name, values in net.state_dict().items():
        torch.testing.assert_close(found[name], values, rtol=tolerance, atol=tolerance, msg=name)
