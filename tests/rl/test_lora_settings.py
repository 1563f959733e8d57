"""Settings of LoRA: what is refused, what is filled in, and which adapters and targets fit a model."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tomllib
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import huggingface_hub.constants
import pytest

from recipes.cli import parse
from rl.config import Config
from rl.defaults import resolve
from rl.frozen_base import base_problems
from rl.lora import fit_problems, num_trained, with_targets
from rl.lora_settings import LoraSpec
from rl.machine import Machine
from rl.model import model_facts
from rl.model_adapter import format_at
from rl.preflight import memory_problems
from rl.screens import adapter_line
from rl.validation import ConfigError, validate
from tests.rl.test_lora import FRESH, learner
from tests.tiny import load, make_tiny_mixture, make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
LAPTOP = Machine(host="laptop", cores=2, memory_bytes=8 << 30, gpus=())
ONE_GPU = replace(LAPTOP, gpus=("H200",))


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), tied=request.param)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tied"), tied=True)


def problems(tied: Path, **fields: Any) -> str:
    config = resolve(Config(model=str(tied), **fields), LAPTOP)
    return "\n".join([*fit_problems(config), *base_problems(config)])


def test_targets_that_match_no_module_are_refused_with_the_nearest(tied: Path) -> None:
    assert not problems(tied, lora_rank=4, lora_targets="q_proj, layers.0.mlp.up_proj")
    assert "did you mean 'q_proj'?" in problems(tied, lora_rank=4, lora_targets="q_porj,v_proj")
    assert "beside which no adapter can be" in problems(tied, lora_rank=4, lora_targets="norm")
    assert "name the embedding" in problems(tied, lora_rank=4, lora_targets="lm_head")
    assert "embed_tokens here" in problems(
        tied, lora_rank=4, lora_targets="embed_tokens", lora_sync="adapter"
    )
    with pytest.raises(ValueError, match="did you mean 'q_proj'"):
        learner(tied, replace(FRESH, targets=("q_porj",)))


def test_auto_adapts_a_small_vocabulary_too_and_counts_what_it_trains(folder: Path) -> None:
    config = with_targets(resolve(Config(model=str(folder), lora_rank=4), LAPTOP))
    is_tied = load(folder).config.tie_word_embeddings
    assert config.lora_targets == (
        "all-linear,embed_tokens" if is_tied else "all-linear,embed_tokens,lm_head"
    )
    own = learner(folder, config.lora)
    assert num_trained(config, 0) == own.facts()["num_trained"]
    served = with_targets(resolve(Config(model=str(folder), lora_rank=4, lora_sync="adapter"), LAPTOP))
    assert served.lora_targets == "all-linear"


def test_an_adapter_of_another_base_is_refused_with_what_differs(tied: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    learner(tied).checkpoint(str(saved), {})
    assert not problems(tied, lora_adapter=str(saved))
    narrow = make_tiny_model(tmp_path / "narrow", tied=True, num_layers=1)
    told = problems(narrow, lora_adapter=str(saved))
    assert "another base" in told
    assert "model.layers.1.mlp.down_proj, which the model lacks" in told
    other = make_tiny_model(tmp_path / "other", tied=True, seed=1)
    assert str(tied) in problems(other, lora_adapter=str(saved))
    with pytest.raises(ValueError, match="same shapes"):
        learner(other, LoraSpec(adapter=str(saved)))
    assert "cannot be read as an adapter" in problems(tied, lora_adapter=str(tied))
    shutil.copytree(saved, tmp_path / "dora")
    settings = json.loads((saved / "adapter_config.json").read_text())
    (tmp_path / "dora" / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    assert "use_dora" in problems(tied, lora_adapter=str(tmp_path / "dora"))


@pytest.mark.parametrize("held", ["full", "nf4"])
def test_an_adapter_of_the_hub_says_how_its_base_was_held(
    tied: Path, tmp_path: Path, held, monkeypatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--owner--adapter"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    copy = repository / "snapshots" / ("0" * 40)
    learner(tied).checkpoint(str(copy), {})
    assert not problems(tied, lora_adapter="owner/adapter")
    (copy / "base.json").write_text(json.dumps({"lora_base": held}))
    told = problems(tied, lora_adapter="owner/adapter")
    if held == "nf4":
        assert "'owner/adapter' was trained beside its base in nf4, and lora_base is 'full'" in told
    else:
        assert 'base.json names a base that is not known here; expected {"lora_base": "nf4"}' in told


class Hub(BaseHTTPRequestHandler):
    """As the Hugging Face hub answers for one repository, which holds `files`; or a proxy that forbids it."""

    files: ClassVar[dict[str, bytes]] = {}
    is_forbidden: ClassVar[bool] = False

    def do_HEAD(self) -> None:
        content = self.files.get(self.path.removeprefix("/owner/adapter/resolve/main/"))
        self.send_response(403 if self.is_forbidden else 404 if content is None else 200)
        self.send_header("X-Repo-Commit", "0" * 40)
        if self.is_forbidden:
            content = b""
        elif content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.files.get(self.path.removeprefix("/owner/adapter/resolve/main/"), b""))


def test_the_hub_is_asked_how_an_adapters_base_was_held(tmp_path: Path, monkeypatch) -> None:
    constants = huggingface_hub.constants
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.split("/", 3)[3]
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{template}")
        assert format_at("owner/adapter") == "full"
        monkeypatch.setitem(Hub.files, "base.json", b'{"lora_base": "nf4"}')
        assert format_at("owner/adapter") == "nf4"
        shutil.rmtree(tmp_path / "models--owner--adapter")
        monkeypatch.setattr(Hub, "is_forbidden", True)
        with pytest.raises(OSError, match="cannot find the requested files"):
            format_at("owner/adapter")
        server.shutdown()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"lora_alpha": 8.0}, "lora_alpha has no effect without an adapter"),
        ({"lora_sync": "merged"}, "lora_sync has no effect"),
        ({"lora_lr": 0.1}, "lora_lr has no effect"),
        ({"lora_rank": -1}, "lora_rank = -1: expected at least 0"),
        ({"lora_rank": 8, "lora_targets": ","}, "names no module"),
        ({"lora_rank": 8, "lora_targets": "auto,q_proj"}, "stands alone"),
        ({"lora_rank": 8, "lora_adapter": "a/b"}, "lora_rank = 8 with lora_adapter"),
        ({"lora_rank": 8, "lora_sync": "merge"}, "did you mean 'merged'?"),
        ({"lora_rank": 8, "lora_sync": "adapter", "sabotage": "no_retie"}, "use lora_sync merged"),
        ({"lora_base": "nf4"}, "lora_base has no effect without an adapter"),
        ({"lora_rank": 8, "lora_base": "nf3"}, "did you mean 'nf4'?"),
        ({"lora_rank": 8, "lora_base": "nf4", "lora_sync": "adapter"}, "is trained beside a rounded one"),
        ({"lora_rank": 8, "lora_base": "nf4", "backend": "fsdp"}, "weights in 4 bits are not sharded here"),
        (
            {"lora_rank": 8, "backend": "deepspeed", "learner_ranks": 2, "zero_stage": 3},
            "backend = 'deepspeed' with an adapter: adapters are trained by plain torch and by FSDP2 so far",
        ),
    ],
)
def test_settings_without_effect_or_that_do_not_fit_are_refused(
    fields: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Config(**fields), LAPTOP)
    assert expected in str(caught.value)


def test_a_base_in_4_bits_without_its_package_is_refused_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, tied: Path
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    command = rf"bitsandbytes is not installed.*pip install --no-deps {re.escape(*extras['bnb'])}`"
    with pytest.raises(ConfigError, match=command):
        validate(Config(lora_rank=8, lora_base="nf4"), LAPTOP)
    with pytest.raises(ValueError, match=command):
        learner(tied, replace(FRESH, base="nf4"))


def test_models_whose_layers_cannot_be_held_in_4_bits_are_refused(tied: Path, tmp_path: Path) -> None:
    assert not problems(tied, lora_rank=4, lora_base="nf4")
    mixture = make_tiny_mixture(tmp_path / "mixture")
    assert "is a mixture of experts, most of whose weights" in problems(mixture, lora_rank=4, lora_base="nf4")
    settings = json.loads((tied / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "intermediate_size": 250}))
    told = problems(tmp_path, lora_rank=4, lora_base="nf4")
    assert "blocks of 64 weights: model.layers.0.mlp.down_proj (250); model.layers.1.mlp.down_proj" in told
    assert "q_proj" not in told
    assert not problems(tmp_path, lora_rank=4)


def test_an_adapter_of_a_base_in_4_bits_is_not_put_beside_a_whole_one(tied: Path, tmp_path: Path) -> None:
    learner(tied).checkpoint(str(tmp_path / "saved"), {})
    given = {"lora_adapter": str(tmp_path / "saved")}
    assert not problems(tied, **given)
    (tmp_path / "saved" / "base.json").write_text('{"lora_base": "nf4"}')
    assert "lora_base is 'full', beside which it answers otherwise; add lora_base nf4" in problems(
        tied, **given
    )
    assert not problems(tied, **given, lora_base="nf4")
    (tmp_path / "saved" / "base.json").write_text('{"lora_base": "int3"}')
    assert "names a base that is not known here" in problems(tied, **given)


def test_a_base_in_4_bits_is_sent_merged_before_anything_is_measured_and_takes_less_memory(
    folder: Path,
) -> None:
    config = resolve(Config(model=str(folder), lora_rank=4, lora_base="nf4"), ONE_GPU)
    assert (config.lora_base, config.lora_sync) == ("nf4", "merged")
    assert not config.starts_from_its_model
    assert replace(config, lora_base="full").starts_from_its_model
    assert config.lora is not None
    assert config.lora.base == "nf4"
    assert "embed_tokens" in with_targets(config).lora_targets
    assert "linear layers in nf4" in adapter_line(config, 1)
    # Two layers of q 128x128, k and v 128x64, o 128x128, three of 128x256: 294,912 weights in 4.127 bits.
    # With an engine's copy and one to send, a weight takes 12 bytes, of which 4 are the learner's.
    facts, on_cpu = model_facts(str(folder)), replace(config, device="cpu", engine_dtype="float32", engines=1)
    least = 12 * facts.num_parameters - 294_912 * (4 - 4.127 / 8)
    for memory_bytes, is_refused in ((int(least) - 1, True), (int(least) + 1, False)):
        machine = replace(LAPTOP, memory_bytes=memory_bytes)
        assert bool([*memory_problems(on_cpu, machine, facts)]) == is_refused


def test_the_dotted_options_are_the_fields(tied: Path) -> None:
    given = ["--lora.rank", "8", "--lora.targets=q_proj,v_proj", "--lora-alpha", "4", "--model", str(tied)]
    config = parse(Config(), given)
    assert (config.lora_rank, config.lora_targets, config.lora_alpha) == (8, "q_proj,v_proj", 4.0)


def test_what_is_not_given_is_resolved_and_shown() -> None:
    config = resolve(Config(lora_rank=8, learning_rate=4e-4), LAPTOP)
    assert (config.lora_alpha, config.lora_lr, config.lora_sync) == (16.0, pytest.approx(4e-3), "merged")
    line = adapter_line(config, 1234)
    assert "rank 8, alpha 16, beside auto): 1,234 parameters, learning rate 0.004" in line
    validate(config, LAPTOP)
    on_gpu = resolve(Config(lora_rank=8), ONE_GPU)
    assert (on_gpu.lora_sync, on_gpu.sync_backend) == ("adapter", "shm")
    validate(on_gpu, ONE_GPU)
    assert resolve(Config(), LAPTOP).lora is None
