"""InceptionV3 against torch-fidelity's with random weights, preprocessing against torch, figures of torchmetrics."""

import importlib.util
import sys
import types

import numpy as np
import pytest

from diffusion_jax import evaluation
from diffusion_jax.evaluation.features import preprocess, read_uint8
from diffusion_jax.weights.torch_file import read_torch_file
from tests.parity import relative_error
from tests.weights import inception_state

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module", autouse=True)
def torch_fidelity():
    """Its modules without its __init__, which imports torchvision for networks that are not needed here."""
    found = importlib.util.find_spec("torch_fidelity")
    if found is not None:
        package = types.ModuleType("torch_fidelity")
        package.__path__ = list(found.submodule_search_locations)
        package.__spec__ = found
        sys.modules["torch_fidelity"] = package
    yield found
    sys.modules.pop("torch_fidelity", None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    state = {name: torch.from_numpy(array) for name, array in inception_state().items()}
    torch.save(state, folder / "zip.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    return folder


def test_the_file_of_either_format_holds_the_same(weights):
    expected = inception_state()
    for name in ("zip.pth", "legacy.pth"):
        found = read_torch_file(weights / name)
        assert list(found) == list(expected)
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("modern", [True, False])
def test_modules_dtypes_and_views(tmp_path, modern):
    """What torch itself writes: OrderedDicts with metadata, parameters, shared and strided tensors, every dtype."""
    norm = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    base = torch.arange(12.0).reshape(3, 4)
    dtypes = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    saved = {
        "module": norm.state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "transposed": base.t(),
        "column": base[:, 1],
        "step": 7,
        "shape": base.shape,
        "list": [torch.tensor(2.5), None, "text", (1.5, True)],
        **{name: torch.tensor([0, 1, 100]).to(getattr(torch, name)) for name in dtypes},
    }
    torch.save(saved, tmp_path / "saved.pt", _use_new_zipfile_serialization=modern)
    found = read_torch_file(tmp_path / "saved.pt")
    assert list(found) == list(saved)
    for name, tensor in norm.state_dict().items():
        np.testing.assert_array_equal(found["module"][name], tensor.numpy())
    for name in ("transposed", "column"):
        np.testing.assert_array_equal(found[name], saved[name].numpy())
    np.testing.assert_array_equal(found["parameter"], [1, 1])
    assert found["step"] == 7 and tuple(found["shape"]) == (3, 4) and found["list"][1:] == [None, "text", (1.5, True)]
    for name in dtypes:
        assert found[name].dtype.name == name
        np.testing.assert_array_equal(found[name].astype(np.float64), saved[name].double().numpy())
    torch.save(norm, tmp_path / "module.pt", _use_new_zipfile_serialization=modern)
    with pytest.raises(ValueError, match=r"state_dict\(\)"):
        read_torch_file(tmp_path / "module.pt")


def test_inception_is_that_of_torch_fidelity(weights, torch_fidelity):
    if torch_fidelity is None:
        pytest.skip("torch-fidelity is not installed")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    original = FeatureExtractorInceptionV3(
        "original", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights / "zip.pth"
    )
    original.eval()
    spatial = []
    original.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: spatial.append(output))
    x = np.random.default_rng(0).integers(0, 256, (3, 64, 48, 3)).astype(np.uint8)
    with torch.no_grad():
        features, logits = original(torch.from_numpy(x).permute(0, 3, 1, 2))
    extractor = evaluation.inception(weights / "legacy.pth", resize="tensorflow")
    found = extractor.apply(extractor.params, x)
    assert relative_error(found.features, features.numpy()) < 2e-5
    assert relative_error(found.logits, logits.numpy()) < 2e-5
    expected = spatial[0][:, :7].permute(0, 2, 3, 1).reshape(3, -1).numpy()
    assert relative_error(found.spatial, expected) < 2e-5
    variation = features.numpy().std(axis=0) / np.abs(features.numpy()).max()
    assert variation.max() > 1e-3, "different images have different features"


@pytest.mark.parametrize("shape", [(32, 32), (64, 48), (331, 420), (299, 299)])
def test_preprocessing(shape, torch_fidelity):
    x = np.random.default_rng(0).integers(0, 256, (2, *shape, 3)).astype(np.uint8)
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(pixels / 255, (299, 299), mode="bilinear", align_corners=False)
    expected = (2 * resized - 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(preprocess(x, "pytorch"), expected, atol=5e-7)
    gray = preprocess(x[..., :1], "pytorch")
    np.testing.assert_allclose(gray, np.broadcast_to(expected[..., :1], gray.shape), atol=5e-7)
    if torch_fidelity is not None:
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        resized = interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(299, 299), align_corners=False)
        expected = ((resized - 128) / 128).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(preprocess(x, "tensorflow"), expected, atol=5e-7)


def test_quantisation_is_that_of_saved_images():
    """torchvision.utils.save_image and torchmetrics: [0, 1] times 255, rounded to nearest."""
    x = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    expected = ((x + 1) / 2 * 255 + 0.5).clamp(0, 255).to(torch.uint8).numpy()
    source = evaluation.image_source(x.numpy().astype(np.float32).reshape(-1, 1, 1, 1))
    found = read_uint8(source, np.arange(4001)).ravel()
    ties = np.abs((x.numpy() + 1) / 2 * 255 % 1 - 0.5) < 1e-4
    np.testing.assert_array_equal(found[~ties], expected[~ties])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_distances_and_scores_are_those_of_torchmetrics():
    pytest.importorskip("torchmetrics")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    class Given(torch.nn.Module):
        num_features = 24

        def forward(self, x):
            return x

    random = np.random.default_rng(0)
    mix = random.normal(size=(24, 24)) / 5
    real, fake = np.abs(random.normal(size=(250, 24)) @ mix + 0.5), np.abs(1.2 * random.normal(size=(250, 24)) @ mix)

    def torchmetric(metric):
        metric.update(torch.from_numpy(real), real=True)
        metric.update(torch.from_numpy(fake), real=False)
        return metric.compute()

    fid = evaluation.frechet_distance(real.mean(0), np.cov(real.T), fake.mean(0), np.cov(fake.T))
    assert fid == pytest.approx(float(torchmetric(FrechetInceptionDistance(feature=Given()))), rel=1e-6)
    mean, _ = torchmetric(KernelInceptionDistance(feature=Given(), subsets=1, subset_size=250))
    assert evaluation.kernel_distance(real, fake, subsets=1).mean == pytest.approx(float(mean), rel=1e-5)

    logits = 3 * random.normal(size=(200, 10))
    score = InceptionScore(feature=Given(), splits=1)
    score.update(torch.from_numpy(logits))
    assert evaluation.inception_score(logits, splits=1).mean == pytest.approx(float(score.compute()[0]), rel=1e-6)
