"""Tokenizers: loaded from files, without running code that comes with them."""

import json

import pytest

from recipes.char_tokenizer import make_char_tokenizer
from rollout.tokenizer import load_tokenizer


def test_model_folder_without_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_tokenizer(str(tmp_path))


def test_tokenizer_that_cannot_be_read_is_refused_by_the_models_name(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=f"--model '{tmp_path}' has no tokenizer that can be loaded"):
        load_tokenizer(str(tmp_path))


def test_code_that_comes_with_a_tokenizer_is_not_run(tmp_path):
    make_char_tokenizer().save_pretrained(tmp_path)
    settings_path = tmp_path / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    settings_path.write_text(json.dumps(settings))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ValueError, match="has no tokenizer that can be loaded"):
        load_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_slow_tokenizer_is_refused(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "<unk>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')
    with pytest.raises(ValueError, match=r"slow tokenizer \(CTRLTokenizer\)"):
        load_tokenizer(str(tmp_path))
