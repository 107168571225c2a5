"""A data set from the Hugging Face Hub, by name."""

from pathlib import Path

import datasets
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from pipeline.core.data.images import ImageData, short_hash
from pipeline.core.errors import UserError

TIMEOUT = 5  # seconds to wait for the Hub's first answer


def hub(dataset: str, train: str = "train", validation: str = "validation", image_column: str = "image",
        label_column: str = "label", revision: str | None = None) -> ImageData:
    """The data set `dataset` of the Hub (or a local folder that `datasets` reads), with the names of two splits and columns.

    Raises UserError when the Hub cannot be reached, knows no such data set or keeps it gated, and for splits or columns
    that are not there or not of images and classes.
    """
    if not (constants.HF_HUB_OFFLINE or Path(dataset).is_dir()):
        _ask_the_hub(dataset, revision)
    try:
        loaded = datasets.load_dataset(dataset, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        offline = "HF_HUB_OFFLINE is set: unset it, or download the data set first" if constants.HF_HUB_OFFLINE else ""
        raise UserError(f"data.dataset: {dataset} cannot be loaded ({reason}); "
                        f"{offline or 'check the name, or load an image folder with name: folder'}") from error
    for split in (train, validation):
        if split not in loaded:
            raise UserError(f"data: {dataset} has no split {split!r}; it has {', '.join(map(str, loaded))}")
    features = loaded[train].features
    if not isinstance(features.get(image_column), datasets.Image):
        raise UserError(f"data.image_column: {image_column!r} of {dataset} holds no images; "
                        f"its columns: {', '.join(features)}")
    classes = features.get(label_column)
    if not isinstance(classes, datasets.ClassLabel):
        raise UserError(f"data.label_column: {label_column!r} of {dataset} holds no class labels; "
                        f"its columns: {', '.join(features)}")
    names = tuple(classes.names)
    training, validating = (_as_images(loaded[split], image_column, label_column) for split in (train, validation))
    fingerprint = short_hash(training._fingerprint, validating._fingerprint, names)
    return ImageData(training, validating, names, names, names, fingerprint)


def _ask_the_hub(dataset: str, revision: str | None) -> None:
    """Ask once, with a short timeout: `datasets` itself would try again for half a minute before it gives up."""
    try:
        HfApi().dataset_info(dataset, revision=revision, timeout=TIMEOUT)
        HfApi().auth_check(dataset, repo_type="dataset")
    except GatedRepoError as error:
        raise UserError(f"data.dataset: {dataset} is gated; accept its terms at {constants.ENDPOINT}/datasets/{dataset} "
                        "and run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"data.dataset: {dataset} is not on the Hub, or private; check the name, "
                        "or run `hf auth login`") from error
    except Exception as error:  # which HTTP library is underneath, and so its errors, depends on huggingface_hub's version
        raise UserError(f"data.dataset: {dataset} cannot be looked up at {constants.ENDPOINT} ({type(error).__name__}); "
                        "check the network, or set HF_HUB_OFFLINE=1 if it is downloaded already") from error


def _as_images(split: datasets.Dataset, image_column: str, label_column: str) -> datasets.Dataset:
    split = split.select_columns([image_column, label_column]).rename_columns(
        {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new})
    return split.cast_column("image", datasets.Image(decode=False))
