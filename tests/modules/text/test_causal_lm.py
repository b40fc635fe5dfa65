"""CausalLanguageModel compared with transformers: losses, perplexity, packing, samples, checkpoints, export."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
)

from slicefine_pl.callbacks import SliceFineCallback
from slicefine_pl.data.text.completions import IGNORED, CausalLMCollator, CausalLMDataset
from slicefine_pl.data.text.packing import PackedCollator, PackedDataset
from slicefine_pl.inputs import TextInput
from slicefine_pl.modules import CausalLanguageModel
from slicefine_pl.modules.text.generation import Sample, complete, save_samples
from slicefine_pl.modules.text.packing_support import supports_packing
from slicefine_pl.pretrained import locate, split_gguf

LENGTHS, STARTS = [5, 9, 4, 12, 7, 3], [2, 3, 1, 9, 1, 2]


@pytest.fixture
def examples():
    """Six examples of unequal lengths, of which unequal parts are learned."""
    return CausalLMDataset([torch.randint(3, 26, (length,)).tolist() for length in LENGTHS], STARTS)


def padded(examples):
    return CausalLMCollator(0)([examples[index] for index in range(len(examples))])


def packed(examples):
    rows = PackedDataset(examples, 16)
    return PackedCollator(0)([rows[index] for index in range(len(rows))])


def trainer(folder: Path, **settings) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **{**quiet, "enable_checkpointing": False, **settings})


def loader(examples, size=2):
    return DataLoader(examples, batch_size=size, collate_fn=CausalLMCollator(0))


def losses(model, examples):
    """Independent reference: each example alone, each learned token's probability given those before it."""
    sums, count = [], 0
    for index in range(len(examples)):
        tokens = torch.tensor(examples[index]["input_ids"])
        chances = model(input_ids=tokens[None]).logits[0].softmax(-1)
        learned = [place for place, label in enumerate(examples[index]["labels"]) if label != IGNORED]
        sums += [-chances[place - 1, tokens[place]].log() for place in learned]
        count += len(learned)
    return torch.stack(sums).sum(), count


def test_loss_is_that_of_transformers_over_labelled_tokens(tiny_llama, examples):
    module = CausalLanguageModel(str(tiny_llama)).eval()
    total, count = module.token_loss(padded(examples))
    expected, tokens = losses(module.model, examples)
    assert count == tokens == sum(LENGTHS) - sum(STARTS)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(total / count, module.model(**padded(examples)).loss)


@pytest.mark.parametrize(("attention", "rtol"), [("sdpa", 1e-12), ("eager", 1e-4)])  # eager takes softmax in float32
def test_packed_examples_do_not_see_each_other(tiny_llama, examples, attention, rtol):
    """Loss and every gradient, in float64, equal those of the examples one at a time."""
    module = CausalLanguageModel(str(tiny_llama)).double()
    module.model.set_attn_implementation(attention)
    expected, tokens = losses(module.model, examples)
    wanted = torch.autograd.grad(expected, list(module.model.parameters()))
    batch = packed(examples)
    assert len(batch["input_ids"]) == 3 < len(examples)
    total, count = module.token_loss(batch)
    assert count == tokens
    torch.testing.assert_close(total, expected, rtol=rtol, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(total, list(module.model.parameters())), wanted, rtol=rtol, atol=rtol
    )


def test_packing_without_positions_would_be_another_loss(tiny_llama, examples):
    """The test above can fail."""
    module = CausalLanguageModel(str(tiny_llama)).double()
    batch = packed(examples)
    total, _ = module.token_loss(batch)
    del batch["position_ids"]
    assert (module.token_loss(batch)[0] - total).abs() > 1e-3


def test_who_keeps_packed_examples_apart_is_found_out_by_trying(tiny_llama):
    small = {"vocab_size": 26, "hidden_size": 16}
    llama = CausalLanguageModel(str(tiny_llama)).model
    llama.model.norm.eval()
    assert supports_packing(llama)
    assert llama.training
    assert not llama.model.norm.training  # modes are as before
    assert supports_packing(
        GPT2LMHeadModel(GPT2Config(vocab_size=26, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5))
    )
    assert not supports_packing(MambaForCausalLM(MambaConfig(**small, num_hidden_layers=2, initializer_range=0.5)))


@pytest.mark.filterwarnings("ignore")
def test_training_on_packed_rows_of_a_model_that_mixes_them_is_refused(tiny_llama, examples, tmp_path, monkeypatch):
    module = CausalLanguageModel(str(tiny_llama))
    monkeypatch.setattr("slicefine_pl.modules.text.causal_lm.supports_packing", lambda model: False)
    with pytest.raises(ValueError, match="LlamaForCausalLM does not keep packed examples apart; set packing"):
        trainer(tmp_path, max_steps=1).fit(module, DataLoader([packed(examples)], batch_size=None))


@pytest.mark.filterwarnings("ignore")
def test_perplexity_is_over_all_tokens_of_all_batches(tiny_llama, examples, tmp_path):
    """Three batches of unequal token counts: exp(sum of losses / tokens), not a mean of means."""
    from torchmetrics.text import Perplexity

    module = CausalLanguageModel(str(tiny_llama), samples=0)
    [scores] = trainer(tmp_path).validate(module, loader(examples), verbose=False)
    total, tokens = losses(module.model.eval(), examples)
    assert scores["val/loss"] == pytest.approx(total.item() / tokens, rel=1e-5)
    assert scores["val/perplexity"] == pytest.approx(math.exp(total.item() / tokens), rel=1e-5)
    batch, metric = padded(examples), Perplexity(ignore_index=IGNORED)
    metric.update(module(batch)[:, :-1], batch["labels"][:, 1:])
    [again] = trainer(tmp_path).test(module, loader(examples), verbose=False)  # and once more: nothing is left over
    assert again["test/perplexity"] == pytest.approx(metric.compute().item(), rel=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("few", [True, False])
def test_logits_of_unlabelled_positions_are_spared_where_the_model_can(tiny_llama, examples, few):
    module = CausalLanguageModel(str(tiny_llama)).eval()
    assert module._selects_logits
    module._selects_logits = few
    seen = []
    module.model.lm_head.register_forward_hook(lambda _, given, out: seen.append(out.shape[1]))
    torch.testing.assert_close(module.token_loss(padded(examples))[0], losses(module.model, examples)[0])
    assert (seen[0] < 12) == few


@pytest.mark.filterwarnings("ignore")
def test_gradient_checkpointing_changes_memory_not_gradients(tiny_llama, examples):
    gradients = []
    for checkpointing in (False, True):
        module = CausalLanguageModel(str(tiny_llama), gradient_checkpointing=checkpointing)
        module.token_loss(padded(examples))[0].backward()
        gradients.append({name: parameter.grad for name, parameter in module.named_parameters()})
    assert module.model.is_gradient_checkpointing
    torch.testing.assert_close(gradients[0], gradients[1])


def test_completions_do_not_depend_on_neighbors(tiny_llama):
    """Batched with padding on the left, as one at a time; and as transformers' own greedy search."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    prompts = [torch.tensor([2, 7, 9]), torch.tensor([2, 11]), torch.tensor([2, 8, 12, 13, 9, 20])]
    together = complete(model, prompts, 0, 5)
    for prompt, new in zip(prompts, together, strict=True):
        alone = model.generate(input_ids=prompt[None], max_new_tokens=5, do_sample=False)[0, len(prompt) :].tolist()
        assert new[: len(alone)] == alone
        assert set(new[len(alone) :]) <= {0}


@pytest.mark.filterwarnings("ignore")
def test_samples_are_kept_before_training_and_after_each_epoch(tiny_llama, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    texts = ["<s> the film was good </s>", "<s> i liked it very very very very very much but </s>"]
    items = CausalLMDataset([tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts], [4, 1])
    module = CausalLanguageModel(str(tiny_llama), samples=2, max_new_tokens=3)
    trainer(tmp_path, max_epochs=2).fit(module, loader(items), loader(items))
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0, 0, 1, 1, 2, 2]
    assert {sample["prompt"] for sample in samples} == {"the film was", "i liked it very very very very"}
    assert [sample["expected"] for sample in samples[:2]] == ["good", "very but"]
    assert all(len(sample["generated"].split()) <= 3 for sample in samples)


def test_loggers_that_take_text_get_the_samples(tmp_path):
    output = []
    board = SimpleNamespace(experiment=SimpleNamespace(add_text=lambda *arguments: output.append(arguments)))
    wandb = SimpleNamespace(log_text=lambda key, columns, data, step: output.append((key, data[0], step)))
    save_samples([Sample(3, "a", "b", "c")], tmp_path / "new", [board, wandb, SimpleNamespace(experiment=None)])
    assert output == [("samples", "a | b | c", 3), ("samples", ["a", "b", "c"], 3)]
    assert json.loads((tmp_path / "new" / "samples.jsonl").read_text())["generated"] == "b"


def test_predictions_are_texts_and_must_fit_the_context(tiny_llama):
    module = CausalLanguageModel(str(tiny_llama), max_new_tokens=8).eval()
    tokenizer = module.tokenizer
    tokenizer.padding_side = "right"
    batch = dict(tokenizer(["the film was", "i"], padding=True, return_tensors="pt"))
    first, second = module.predict_step(batch, 0)
    alone = module.model.generate(**tokenizer("i", return_tensors="pt"), max_new_tokens=8, do_sample=False)
    assert second == tokenizer.decode(alone[0, 2:], skip_special_tokens=True)
    assert isinstance(first, str)
    ids = torch.full((1, 25), 7)
    with pytest.raises(ValueError, match=r"a prompt of 25 tokens and max_new_tokens=8 exceed the context of 32 tokens"):
        module.predict_step({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 0)


@pytest.mark.filterwarnings("ignore")
def test_slices_train_and_the_tied_head_stays(tiny_llama, examples, tmp_path, recwarn):
    module = CausalLanguageModel(str(tiny_llama), lr=0.05, samples=0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    slicefine = SliceFineCallback(rank=4, interval=2)
    run = trainer(tmp_path, max_epochs=8, callbacks=[slicefine])
    [first] = run.test(module, loader(examples), verbose=False)
    run.fit(module, loader(examples))
    [last] = run.test(module, loader(examples), verbose=False)
    assert last["test/loss"] < 0.9 * first["test/loss"]
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    names = [*(f"self_attn.{part}_proj" for part in "qkvo"), *(f"mlp.{part}_proj" for part in ("gate", "up", "down"))]
    linears = {f"model.model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in names}
    assert changed == linears
    assert module.model.lm_head.weight is module.model.model.embed_tokens.weight
    assert not [warning for warning in recwarn if "head" in str(warning.message)]


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tiny_llama, tmp_path, monkeypatch):
    from slicefine_pl.data import InstructionDataModule

    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path / "cache"))
    words = ("film", "movie", "plot", "acting")
    rows = [{"prompt": f"the {a} {b} {c}", "completion": a} for a in words for b in words for c in words]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def fit(folder, ckpt_path=None):
        data = InstructionDataModule(
            str(tmp_path / "rows.jsonl"), tokenizer=str(tiny_llama), packing=True, max_length=24, batch_size=3
        )
        module = CausalLanguageModel(str(tiny_llama), lr=0.02, samples=1, max_new_tokens=2)
        every = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        callbacks = [SliceFineCallback(rank=4, interval=2), every]
        run = trainer(folder, max_epochs=3, callbacks=callbacks, enable_checkpointing=True)
        run.fit(module, data, ckpt_path=ckpt_path)
        return module.state_dict(), run.global_step

    whole, steps = fit(tmp_path / "whole")
    assert steps >= 9
    for step in (1, steps // 3, steps // 3 + 1):  # inside an epoch, at its end, inside the next
        rest, _ = fit(tmp_path / f"rest{step}", tmp_path / "whole" / f"step={step}.ckpt")
        assert all(torch.equal(value, rest[name]) for name, value in whole.items()), f"resumed after step {step}"


@pytest.mark.filterwarnings("ignore")
def test_checkpoint_export_and_the_three_lines_agree(tiny_llama, examples, tmp_path):
    module = CausalLanguageModel(str(tiny_llama), lr=0.1, samples=0, max_new_tokens=3)
    run = trainer(tmp_path, max_steps=2)
    run.fit(module, loader(examples))
    run.save_checkpoint(tmp_path / "a.ckpt")
    batch = padded(examples)
    expected = module.eval()(batch)
    assert torch.equal(CausalLanguageModel.load_from_checkpoint(tmp_path / "a.ckpt").eval()(batch), expected)
    folder = module.export(tmp_path / "export")
    assert (folder / "model.safetensors").is_file()
    assert torch.equal(CausalLanguageModel(str(folder)).eval()(batch), expected)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert torch.equal(plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, expected)
    lines, printed = module.example(folder).splitlines(), []
    assert len(lines) == 3
    exec("\n".join(lines), {"print": printed.append})
    assert printed[0][0]["generated_text"].startswith("Once upon a time")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chat", [True, False])
def test_the_form_of_prompts_travels_with_the_model(tiny_llama, tmp_path, monkeypatch, chat):
    """Checkpoint, export and the printed lines ask as training did."""
    from slicefine_pl.data import InstructionDataModule

    monkeypatch.setenv("SLICEFINE_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"the {a} {b}", "completion": a} for a in ("film", "plot") for b in ("film", "movie", "acting")]
    (tmp_path / "own").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / "own" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    module = CausalLanguageModel(str(tiny_llama), samples=0, max_new_tokens=4)
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, InstructionDataModule(str(tmp_path / "own"), tokenizer=str(tiny_llama), chat=chat))
    run.save_checkpoint(tmp_path / "a.ckpt")
    folder = module.export(tmp_path / "export")
    answers = []
    for given in (
        module,
        CausalLanguageModel.load_from_checkpoint(tmp_path / "a.ckpt"),
        CausalLanguageModel(str(folder)),
    ):
        given.max_new_tokens = 4
        assert given.input == TextInput(chat=chat)
        asked = InstructionDataModule(tokenizer=str(folder), predict_text="Once upon a time")
        answers += trainer(tmp_path).predict(given, asked)
    assert answers[0] == answers[1] == answers[2]
    printed = []
    exec(module.example(folder), {"print": printed.append})
    text = printed[0][0]["generated_text"]
    output = text[-1]["content"] if chat else text.removeprefix("Once upon a time")
    assert output.split() == answers[0][0].split()


def test_a_folder_without_weights_starts_at_random(tiny_llama, tmp_path):
    config = json.loads((tiny_llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    module = CausalLanguageModel(str(tmp_path), dtype="bfloat16")
    assert module.has_random_weights
    assert not CausalLanguageModel(str(tiny_llama)).has_random_weights
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}


def test_wrong_settings_are_refused(tiny_llama, tmp_path):
    with pytest.raises(ValueError, match="samples=-1, max_new_tokens=32: choose at least 0 and at least 1"):
        CausalLanguageModel(str(tiny_llama), samples=-1)
    with pytest.raises(ValueError, match=r"warmup=1.0 is not a fraction of the steps"):
        CausalLanguageModel(str(tiny_llama), warmup=1.0)
    with pytest.raises(ValueError, match=r"could not be loaded .*; give a hub name, a folder with config\.json"):
        CausalLanguageModel(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"gone.gguf' is not a file; give a .gguf file that exists"):
        CausalLanguageModel(str(tmp_path / "gone.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"bad.gguf' could not be loaded"):
        CausalLanguageModel(str(tmp_path / "bad.gguf"))


def test_gguf_files_are_split_from_their_folder(tmp_path):
    (tmp_path / "a.gguf").touch()
    assert split_gguf(locate(str(tmp_path / "a.gguf"))) == (str(tmp_path), "a.gguf")
    assert split_gguf(locate("bert-base-uncased")) == ("bert-base-uncased", None)
    with pytest.raises(FileNotFoundError, match=r"is not a folder or file of 'slicefine_pl'"):
        locate("package:slicefine_pl/a.gguf")
