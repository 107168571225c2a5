"""Which weights, under which name: a number is called FID only when Inception's published weights measured it."""

import importlib

import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity

import eval.extractors
from eval.extractors import EXTRACTORS, InceptionExtractor, inception_weights, load_extractor
from pipeline.core.errors import UserError


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("LGQ_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def untrained_inception(tmp_path_factory):
    """A file of Inception's shape with random weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        network = fidelity.FeatureExtractorInceptionV3("random", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_lite0_says_so_in_every_label():
    extractor = load_extractor("efficientnet-lite0")
    for metric in ("fd", "is", "kid", "precision", "recall"):
        assert "EfficientNet-Lite0" in extractor.label(metric) and "FID" not in extractor.label(metric)
    assert extractor.label("fd") == "FD (EfficientNet-Lite0)"
    assert len(extractor.sha256) == 64 and extractor.describe()["sha256"] == extractor.sha256


@pytest.mark.parametrize("size", [32, 96, 128])
def test_lite0_takes_any_size(size):
    pool, logits = load_extractor("efficientnet-lite0")(torch.zeros(2, 3, size, size + 8, dtype=torch.uint8))
    assert pool.shape == (2, 1280) and logits.shape == (2, 1000)


def test_inception_is_used_where_its_weights_are(untrained_inception, monkeypatch, tmp_path):
    assert load_extractor().name == "EfficientNet-Lite0"
    monkeypatch.setattr(eval.extractors, "INCEPTION_SHA256_PREFIX", eval.extractors.sha256(untrained_inception)[:8])
    for extractor in (load_extractor("auto", untrained_inception), load_extractor("inception-v3", untrained_inception)):
        assert isinstance(extractor, InceptionExtractor)
        assert [extractor.label(metric) for metric in ("fd", "is")] == ["FID", "IS"]
    pool, logits = extractor(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    assert pool.shape == (2, 2048) and logits.shape == (2, 1008)
    assert not any(parameter.requires_grad for parameter in extractor.parameters())

    monkeypatch.setenv("LGQ_INCEPTION_WEIGHTS", str(untrained_inception))
    assert inception_weights() == untrained_inception
    monkeypatch.delenv("LGQ_INCEPTION_WEIGHTS")
    cached = tmp_path / "hub" / "checkpoints" / eval.extractors.INCEPTION_FILE
    cached.parent.mkdir(parents=True)
    cached.symlink_to(untrained_inception)
    assert inception_weights() == cached


def test_weights_that_are_not_the_published_ones_are_refused(untrained_inception):
    with pytest.raises(UserError, match="6726825d"):
        load_extractor("inception-v3", untrained_inception)


def test_a_pickle_that_runs_code_is_not_run(tmp_path, monkeypatch):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    path = tmp_path / "weights.pth"
    torch.save({"weight": Malicious()}, path)
    monkeypatch.setattr(eval.extractors, "INCEPTION_SHA256_PREFIX", eval.extractors.sha256(path)[:8])
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        load_extractor("inception-v3", path)
    assert not (tmp_path / "owned").exists()


def test_missing_weights_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="6726825d") as error:
        load_extractor("inception-v3")
    assert "https://" in str(error.value) and "efficientnet-lite0" in str(error.value)
    with pytest.raises(UserError, match=r"no file .*nowhere\.pth"):
        load_extractor("auto", tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match="its own weights"):
        load_extractor("efficientnet-lite0", tmp_path)
    with pytest.raises(UserError, match="choose from") as error:
        load_extractor("inception")
    assert all(name in str(error.value) for name in EXTRACTORS)


def test_the_module_may_be_loaded_twice():
    importlib.reload(eval.extractors)
